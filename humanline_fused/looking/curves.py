"""Curves of a run, read from its ``metrics.jsonl``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from humanline_fused.training.run.json_lines import read

Line = dict[str, Any]
Points = tuple[list[float], list[float]]
"""x and y, of equal length."""

WORK = ("time/training", "time/generation", "time/reward")
"""Metrics with cumulative seconds, without evaluation and saving."""


def read_metrics(folder: Path) -> list[Line]:
    """Return the log lines of the run in ``folder``, in order, without an incomplete last line.

    Raises:
        ValueError: there are no log lines.
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(f"expected a run's folder with a metrics.jsonl, found none at {file}")
    lines = read(file)
    if not lines:
        raise ValueError(f"{file}: expected log lines, got none")
    return lines


def has(lines: Sequence[Line], name: str) -> bool:
    """Return whether any line has a value for ``name``."""
    return any(line.get(name) is not None for line in lines)


def series(lines: Sequence[Line], x: str, y: str) -> Points:
    """Return the points of the lines that have both ``x`` and ``y``.

    >>> series([{"step": 1, "loss": 0.7}, {"step": 2}, {"step": 3, "loss": None}], "step", "loss")
    ([1], [0.7])
    """
    points = [(line[x], line[y]) for line in lines if line.get(x) is not None and line.get(y) is not None]
    return [p[0] for p in points], [p[1] for p in points]


def with_clock(lines: Sequence[Line], name: str) -> list[Line]:
    """Return the lines with the current sum of :data:`WORK` as ``name``; missing parts keep their previous values.

    >>> with_clock([{"time/training": 2.0}, {"eval_loss": 1.0}, {"time/training": 3.0, "time/reward": 1.0}], "s")[1:]
    [{'eval_loss': 1.0, 's': 2.0}, {'time/training': 3.0, 'time/reward': 1.0, 's': 4.0}]
    """
    so_far: dict[str, float] = {}
    timed = []
    for line in lines:
        so_far |= {part: line[part] for part in WORK if line.get(part) is not None}
        timed.append(line | {name: sum(so_far.values())})
    return timed
