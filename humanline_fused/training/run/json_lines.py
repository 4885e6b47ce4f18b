"""JSON Lines files that stay readable if the run is killed, or a line is damaged."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from humanline_fused import durable
from humanline_fused.stored_lines import finished_lines, objects, warn


def as_json(line: Mapping[str, Any]) -> str:
    """Return one line of JSON, with null for NaN and infinity, which JSON lacks.

    >>> as_json({"loss": float("nan"), "step": 1})
    '{"loss": null, "step": 1}\\n'
    """
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return f"{json.dumps(finite, allow_nan=False)}\n"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the objects of all lines; none if there is no file.

    A damaged line is reported and skipped. A last line without an end is what a killed run left, and not reported.
    """
    return list(objects(path))


def cut(path: Path, keep: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Remove the lines that ``keep`` refuses, atomically, and return the others.

    A damaged line is reported, and kept if the line before it is. An unfinished last line is removed.
    """
    raw, kept, kept_before = [], [], True
    for number, (text, line) in enumerate(finished_lines(path), 1):
        if line is None:
            warn(f"{path}, line {number} is not a JSON object: skipped")
        else:
            kept_before = keep(line)
            kept += [line] * kept_before
        raw += [text] * kept_before
    if path.exists() and b"".join(raw) != path.read_bytes():
        with durable.replacing(path) as file:
            file.writelines(raw)
    return kept


def append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(map(as_json, lines)))
