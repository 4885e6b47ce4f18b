"""Draws runs beside each other from their ``metrics.jsonl``: held-out reward, and log-probs of the chosen answers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HELDOUT_REWARD = "heldout/reward"
"""The mean reward of answers to held-out prompts, in [0, 1]."""

TRAIN_SECONDS = "heldout/train_seconds"
"""Seconds of training until then, without the time that evaluations took."""

COLORS = ("#7a7a7a", "#c2410c", "#1d4ed8", "#15803d")


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``, in order."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def series(lines: list[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    """The points of the lines that have both ``x`` and ``y``.

    >>> series([{"step": 1, "loss": 0.7}, {"step": 2}], "step", "loss")
    ([1], [0.7])
    """
    points = [(line[x], line[y]) for line in lines if x in line and y in line]
    return [p[0] for p in points], [p[1] for p in points]


def plot_comparison(runs: Mapping[str, Path], image: Path, *, title: str) -> None:
    """Draw ``runs`` beside each other.

    Args:
        runs: a run's label and the folder with its ``metrics.jsonl``.
        image: where to write; the ending chooses the format.
        title: of the whole figure.

    Raises:
        OSError: a run's file cannot be read, or the image cannot be written.

    >>> plot_comparison({"plain": Path("plain")}, Path("comparison.png"), title="Sorting")  # doctest: +SKIP
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    by_step, by_time, chosen = figure.subplots(1, 3)
    for color, (label, folder) in zip(COLORS, runs.items(), strict=False):
        lines = read_metrics(folder / "metrics.jsonl")
        style: dict[str, Any] = {"color": color, "label": label, "linewidth": 1.8}
        by_step.plot(*series(lines, "step", HELDOUT_REWARD), marker="o", markersize=4, **style)
        by_time.plot(*series(lines, TRAIN_SECONDS, HELDOUT_REWARD), marker="o", markersize=4, **style)
        chosen.plot(*series(lines, "step", "logps/chosen"), **style)
    for axes in (by_step, by_time):
        axes.set_ylim(0, 1)
    for axes, heading, x, y in (
        (by_step, "Held-out reward by step", "optimizer step", "mean reward (0 to 1)"),
        (by_time, "Held-out reward by time", "seconds of training", "mean reward (0 to 1)"),
        (chosen, "Chosen answers of the training pairs", "optimizer step", "mean log-prob (nats per answer)"),
    ):
        axes.set_title(heading, fontsize=11)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    by_step.legend(frameon=False, loc="lower right")
    figure.savefig(image, dpi=130)
