"""The settings file of a run, for later inspection."""

import json
from pathlib import Path
from typing import Any

from humanline_fused import durable
from humanline_fused.places import did_you_mean
from humanline_fused.training.config import HumanlineConfig

SETTINGS = "settings.json"
"""File name of the settings in the run's folder."""

OF_A_START = ("output_dir", "resume_from_checkpoint", "overwrite_output_dir", "run_name", "logging_dir", "local_rank")
"""Settings that may differ whenever a run is started."""

OF_OPTIMIZER = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
"""Settings that a checkpoint's optimizer holds."""


def write_settings(config: HumanlineConfig) -> None:
    """Write every field of ``config`` except access tokens into its ``output_dir``, atomically.

    Only the process that saves writes; a dry run does not. A resumed run overwrites the file.
    """
    if config.dry_run or not config.should_save:
        return
    durable.write_text(Path(str(config.output_dir), SETTINGS), json.dumps(config.to_dict(), indent=1) + "\n")


def read_settings(run_dir: Path) -> dict[str, Any]:
    """Return the settings by field name.

    Raises:
        ValueError: the file is missing or is not a JSON object.
    """
    return read_object(run_dir / SETTINGS, "a run's folder")


def describe_changes(config: HumanlineConfig, run_dir: Path) -> list[str]:
    """Return a line on the settings that are others than those in a run's folder, for a run that continues it.

    Args:
        config: the settings of the run that continues.
        run_dir: the run's folder; without readable settings nothing is known, and nothing said.
    """
    try:
        then = read_settings(run_dir)
    except ValueError:
        return []
    now = json.loads(json.dumps(config.to_dict()))
    names = [name for name in now if name in then and name not in OF_A_START and now[name] != then[name]]
    took, kept = ([f"{n} {then[n]} → {now[n]}" for n in names if (n in OF_OPTIMIZER) == own] for own in (False, True))
    said = [", ".join(took)] if took else []
    said += [f"without effect, because the checkpoint's optimizer has its own: {', '.join(kept)}"] if kept else []
    return [f"other settings than before: {'; '.join(said)}"] if said else []


def read_object(file: Path, folder: str) -> dict[str, Any]:
    """Return the JSON object of a file.

    Args:
        file: the file.
        folder: what a folder with such a file is, for messages.

    Raises:
        ValueError: the file is missing or is not a JSON object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"expected {folder} with a {file.name}, found none at {file}{did_you_mean(file.parent)}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, got {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected an object, got {type(found).__name__}")
    return found
