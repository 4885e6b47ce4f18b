"""Reads the JSON Lines files of runs, in which a line may be damaged or unfinished."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class DamagedLine(UserWarning):
    """Warning that a line is not a JSON object. It is skipped by readers, and stays in the file."""


def finished_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield each line that has an end, and its object; None for a damaged line. Nothing if there is no file.

    A last line without an end is what a killed run left.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for text in file:
            if not text.endswith(b"\n"):
                return
            yield text, _object(text)


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of all lines, and warn of damaged ones; nothing if there is no file."""
    for number, (_, line) in enumerate(finished_lines(path), 1):
        if line is None:
            warn(f"{path}, line {number} is not a JSON object: skipped")
        else:
            yield line


def warn(text: str) -> None:
    """Warn of a damaged line."""
    warnings.warn(text, DamagedLine, stacklevel=3)


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None
