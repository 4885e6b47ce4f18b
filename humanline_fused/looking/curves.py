"""Curves of a run, read from its ``metrics.jsonl`` in one pass, number by number."""

import itertools
import math
from array import array
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from humanline_fused.places import did_you_mean
from humanline_fused.stored_lines import finished_lines, warn

Columns = Mapping[str, np.ndarray]
"""By name of a metric its value in each log line, float64; NaN where a line has none."""

Points = tuple[list[float], list[float]]
"""x and y, of equal length."""

WORK = ("time/training", "time/generation", "time/reward")
"""Metrics with cumulative seconds, without evaluation and saving."""

NONE = float("nan")
LARGEST = 2.0**1000
"""Numbers from here on are none of a log; a float may not hold their differences, nor an integer as large."""


def read_metrics(
    folder: Path, names: Collection[str] | None = None, report: Callable[[str], None] = warn
) -> dict[str, np.ndarray]:
    """Return the log lines of the run in ``folder``, in order, without an incomplete last line.

    Args:
        folder: the run's folder.
        names: the metrics to keep, beside ``step``, if a line has them; default all.
        report: gets one text about lines that are skipped, because they are not JSON objects with a ``step``.

    Raises:
        ValueError: there are no log lines.
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(f"expected a run's folder with a metrics.jsonl, found none at {file}{did_you_mean(folder)}")
    columns = {"step": array("d")}
    skipped, kept, first = 0, 0, 0
    for number, (_, line) in enumerate(finished_lines(file), 1):
        if line is None or math.isnan(_number(line.get("step"))):
            skipped, first = skipped + 1, first or number
            continue
        for name in line.keys() - columns.keys():
            if names is None or name in names:
                columns[name] = array("d", [NONE]) * kept
        for name, column in columns.items():
            column.append(_number(line.get(name)))
        kept += 1
    if not kept:
        raise ValueError(f"{file}: expected log lines, got none")
    if skipped:
        report(f"{file}: {skipped} lines are not log lines (JSON objects with a step), the first is line {first}")
    return {name: np.frombuffer(column) for name, column in columns.items()}


def _number(value: object) -> float:
    """Return a number below :data:`LARGEST` as a float, NaN for anything else."""
    if type(value) is int or type(value) is float:
        return float(value) if abs(value) < LARGEST else NONE
    return NONE


def has(columns: Columns, name: str) -> bool:
    """Return whether any line has a value for ``name``."""
    return name in columns and bool(np.isfinite(columns[name]).any())


def values(columns: Columns, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ``x`` and ``y`` of the lines that have both."""
    if x not in columns or y not in columns:
        return np.empty(0), np.empty(0)
    xs, ys = columns[x], columns[y]
    both = np.isfinite(xs) & np.isfinite(ys)
    return xs[both], ys[both]


def series(columns: Columns, x: str, y: str, most: int | None = None) -> Points:
    """Return the points of the lines that have both ``x`` and ``y``.

    Args:
        columns: the log lines.
        x, y: names of metrics.
        most: number of points above which they are thinned, to at most as many: of each stretch of consecutive points
            the lowest and the highest stay, so that a picture with fewer columns of pixels looks the same.

    >>> lines = {"step": np.array([1.0, 2.0, 3.0]), "loss": np.array([0.7, np.nan, 0.5])}
    >>> series(lines, "step", "loss")
    ([1.0, 3.0], [0.7, 0.5])
    """
    xs, ys = values(columns, x, y)
    if most is not None and len(ys) > most:
        places = _extremes(ys, most // 2)
        xs, ys = xs[places], ys[places]
    return xs.tolist(), ys.tolist()


def _extremes(ys: np.ndarray, stretches: int) -> np.ndarray:
    """Return the places of the lowest and the highest value of each of so many stretches, ascending."""
    bounds = np.linspace(0, len(ys), stretches + 1).astype(int)
    parts = [(start, ys[start:stop]) for start, stop in itertools.pairwise(bounds)]
    return np.unique([start + place for start, part in parts for place in (part.argmin(), part.argmax())])


def with_clock(columns: Columns, name: str) -> Columns:
    """Return the lines with the current sum of :data:`WORK` as ``name``; missing parts keep their previous values.

    >>> lines = {"time/training": np.array([2.0, np.nan, 3.0]), "time/reward": np.array([np.nan, np.nan, 1.0])}
    >>> with_clock(lines, "s")["s"].tolist()
    [2.0, 2.0, 4.0]
    """
    length = len(next(iter(columns.values())))
    seconds = np.zeros(length)
    for part in WORK:
        if part in columns:
            known = np.isfinite(columns[part])
            latest = np.maximum.accumulate(np.where(known, np.arange(length), -1))
            seconds += np.where(latest < 0, 0.0, columns[part][latest])
    return {**columns, name: seconds}
