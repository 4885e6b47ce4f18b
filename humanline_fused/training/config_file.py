"""The settings of a YAML file as command-line arguments."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from humanline_fused.places import did_you_mean
from humanline_fused.printing import one_line
from humanline_fused.training.foreign_arguments import OF_SETTINGS, instead


def config_arguments(file: Path, fields: Sequence[str]) -> list[str]:
    """Return the settings of a YAML file as command-line arguments, so that one parser converts and checks both.

    PyYAML reads ``1e-6`` as text; the option's type converts it to a number.

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
    return [argument for key, value in settings.items() for argument in as_arguments(key, value)]


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
    """
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{key}", *_items(value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, bool | dict) else value}"]
