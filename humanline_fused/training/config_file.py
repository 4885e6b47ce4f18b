"""The settings of a YAML file as command-line arguments."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from humanline_fused.places import did_you_mean
from humanline_fused.printing import one_line
from humanline_fused.training.foreign_arguments import OF_SETTINGS, instead

STRATEGIES = ("logging_strategy", "eval_strategy", "save_strategy")
"""Settings with the value ``no``, which YAML reads as false."""

SEVERAL = ("lora_target_modules", "label_names", "include_for_metrics", "debug")
"""Settings that are lists, and options of several arguments."""


def config_arguments(file: Path, fields: Sequence[str], without: Collection[str] = ()) -> list[str]:
    """Return the settings of a YAML file as command-line arguments, so that one parser converts and checks both.

    PyYAML reads ``1e-6`` as text; the option's type converts it to a number.

    Args:
        file: the YAML file.
        fields: the names of all settings.
        without: settings that keep their defaults, whatever the file says.

    Raises:
        ValueError: the file cannot be read, is not a mapping, or has a key that is not in ``fields``.
    """
    try:
        text = file.read_text(encoding="utf-8")
        settings, repeated = yaml.safe_load(text), repeated_key(yaml.compose(text, yaml.SafeLoader))
    except (OSError, UnicodeDecodeError) as error:
        said = f"{getattr(error, 'strerror', None) or error}{did_you_mean(file, Path.is_file)}"
        raise ValueError(f"--config: {file}: {said}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"--config: {file} is not YAML: {one_line(error)}") from error
    if repeated:
        raise ValueError(f"--config: {file}, {repeated}")
    if not isinstance(settings, dict):
        raise ValueError(f"--config: {file}: expected a mapping of fields to values, got {type(settings).__name__}")
    for key, value in settings.items():
        if key not in fields:
            raise ValueError(f"--config: {file}: {key!r} is not a field{instead(str(key), OF_SETTINGS, fields)}")
        if dashed := next((item for item in _items(value) if item.startswith("-")), None):
            raise ValueError(f"--config: {file}: {key}: expected items that do not begin with '-', got {dashed!r}")
        if isinstance(value, list) and len(value) != 1 and key not in (*SEVERAL, "report_to"):
            raise ValueError(f"--config: {file}: {key}: expected one value, got a list of {len(value)}")
    kept = {key: value for key, value in settings.items() if key not in without}
    return [argument for key, value in kept.items() for argument in as_arguments(key, value)]


def without_null(options: Sequence[str], fields: Collection[str]) -> tuple[list[str], set[str]]:
    """Return the options without those that are ``null``, which leave the default, and the settings of the latter.

    >>> without_null(["--sync-every", "null", "--beta=0.2"], ["sync_every", "beta"])
    (['--beta=0.2'], {'sync_every'})
    """
    kept, unset = list(options), set[str]()
    for place in reversed(range(len(options))):
        option, _, value = options[place].partition("=")
        name, follows = option.removeprefix("--").replace("-", "_"), options[place + 1 : place + 2]
        if not option.startswith("--") or name not in fields:
            continue
        if value == "null":
            del kept[place]
            unset.add(name)
        elif option == options[place] and follows == ["null"]:
            del kept[place : place + 2]
            unset.add(name)
    return kept, unset


def repeated_key(node: Any) -> str:
    """Return the place of a key that a mapping of YAML has twice, of which PyYAML drops the first; empty without one.

    >>> import yaml
    >>> repeated_key(yaml.compose("seed: 1\\nseed: 2"))
    "line 2: the key 'seed' occurs twice"
    """
    if getattr(node, "id", None) != "mapping":
        return ""
    keys = [key.value for key, _ in node.value]
    for index, (key, _) in enumerate(node.value):
        if key.id == "scalar" and key.value in keys[:index]:
            return f"line {key.start_mark.line + 1}: the key {key.value!r} occurs twice"
    return next(filter(None, (repeated_key(value) for _, value in node.value)), "")


def _items(value: Any) -> list[str]:
    """Return the items of a list as arguments; none of another value."""
    return [str(item) for item in value] if isinstance(value, list) else []


def as_arguments(key: str, value: Any) -> list[str]:
    """Return one setting as command-line arguments; none for ``null``, which leaves the default.

    >>> as_arguments("clamp", False), as_arguments("lr_scheduler_kwargs", {"power": 2})
    (['--clamp=false'], ['--lr_scheduler_kwargs={"power": 2}'])
    >>> as_arguments("save_strategy", False), as_arguments("report_to", ["wandb", "trackio"])
    (['--save_strategy=no'], ['--report_to=wandb,trackio'])
    """
    if value is None:
        return []
    if key in STRATEGIES and value is False:
        return [f"--{key}=no"]
    if key == "report_to" and isinstance(value, list):
        return [f"--{key}={','.join(map(str, value)) or 'none'}"]
    if isinstance(value, list):
        return [f"--{key}", *_items(value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, bool | dict) else value}"]
