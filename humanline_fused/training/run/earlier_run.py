"""What an earlier run left in a folder in which a run begins at step 0, or from another folder's checkpoint."""

import shutil
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils.peft_utils import ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME

from humanline_fused.stored_lines import objects

METRICS = "metrics.jsonl"
"""File in the run's folder with every log line."""

COMPLETIONS = "completions.jsonl"
"""File in the run's folder with every sample of rounds and its reward."""

LOGS = (METRICS, COMPLETIONS)

WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
ADAPTERS = (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME)


def finished(output_dir: Path) -> str | None:
    """Return what shows that a run was finished in the folder: an exported model, or the last log line; or None."""
    if exported := next((name for name in WEIGHTS + ADAPTERS if (output_dir / name).is_file()), None):
        return exported
    ended = any("train_runtime" in line for line in objects(output_dir / METRICS))
    return METRICS if ended else None


def set_aside(output_dir: Path) -> list[str]:
    """Rename the logs that no checkpoint of the folder can replace; return a line for each."""
    said = []
    for name in LOGS:
        file = output_dir / name
        if file.is_file() and file.stat().st_size:
            number = next(n for n in range(1, 1_000_000) if not file.with_name(f"{name}.{n}").exists())
            kept = file.rename(file.with_name(f"{name}.{number}"))
            said.append(f"{file} is an earlier run's, which left no checkpoint to resume from: kept as {kept.name}")
    return said


def remove(output_dir: Path, checkpoints: list[Path]) -> None:
    """Remove the checkpoints, of links to them the links alone, and the logs of an earlier run.

    Other files stay until this run writes them.
    """
    for folder in checkpoints:
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)
    for name in LOGS:
        (output_dir / name).unlink(missing_ok=True)
