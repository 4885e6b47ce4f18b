"""JSON Lines files that stay readable if the run is killed."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def as_json(line: Mapping[str, Any]) -> str:
    """Return one line of JSON, with null for NaN and infinity, which JSON lacks.

    >>> as_json({"loss": float("nan"), "step": 1})
    '{"loss": null, "step": 1}\\n'
    """
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return f"{json.dumps(finite, allow_nan=False)}\n"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines; none if there is no file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def rewrite(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file atomically: a reader sees either the old or the new lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.writing")
    temporary.write_text("".join(map(as_json, lines)), encoding="utf-8")
    os.replace(temporary, path)


def append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(map(as_json, lines)))
