"""Figures of the experiments: means over seeds with bands, in one style."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.intervals import bootstrap, final
from benchmarks.paper.run_rows import Run

COLORS = {"plain": "#6b7280", "clamp": "#a16207", "sync": "#c2410c", "humanline": "#15803d", "online": "#1d4ed8"}
"""Colours of the arms that most experiments have."""

OTHER = ("#7c3aed", "#be185d", "#0e7490", "#4d7c0f")


def color(arm: str, number: int = 0) -> str:
    """Return the colour of an arm; the ``number``-th of the other colours if it has none."""
    return COLORS.get(arm, OTHER[number % len(OTHER)])


def panels(number: int, width: float = 4.2, height: float = 3.4) -> tuple[Any, list[Any]]:
    """Return a figure with a row of axes, without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * number, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, number, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    return figure, axes


def curve(axes: Any, rows: Sequence[Run], label: str, shade: str) -> None:
    """Draw the mean reward of runs over steps, with its 95 % band."""
    steps = rows[0].steps
    intervals = [bootstrap(values, 2000) for values in zip(*(row.rewards for row in rows), strict=True)]
    axes.fill_between(steps, [i.low for i in intervals], [i.high for i in intervals], color=shade, alpha=0.2, lw=0)
    axes.plot(steps, [i.mean for i in intervals], color=shade, lw=2, label=label)


def line(
    axes: Any, xs: Sequence[float], groups: Sequence[Sequence[float]], label: str, shade: str, *, joined: bool = True
) -> None:
    """Draw means of groups of seeds over ``xs``, with 95 % bars; not ``joined`` where the ``xs`` have no order."""
    intervals = [bootstrap(group, 2000) for group in groups]
    spans = torch.tensor([[i.mean - i.low, i.high - i.mean] for i in intervals]).T.clamp(min=0).tolist()
    style = "-" if joined else "none"
    axes.errorbar(
        xs, [i.mean for i in intervals], yerr=spans, color=shade, ls=style, lw=1.8, marker="o", ms=4, label=label
    )


def learning_curves(
    rows: Sequence[Run], arms: Sequence[str], image: Path, named: Mapping[str, str] | None = None, **fixed: object
) -> None:
    """Draw one panel for each objective: held-out reward of the arms over steps.

    Args:
        named: what the legend calls an arm, if not by its name.
    """
    objectives = list(dict.fromkeys(row.objective for row in rows))
    figure, axes = panels(len(objectives))
    for one, objective in zip(axes, objectives, strict=True):
        for number, arm in enumerate(arms):
            if mine := final(rows, objective=objective, arm=arm, **fixed):
                curve(one, mine, (named or {}).get(arm, arm), color(arm, number))
        one.set_title(objective.upper(), loc="left")
        one.set_xlabel("optimizer step")
        one.set_ylim(0, 1)
    axes[0].set_ylabel("expected held-out reward")
    axes[0].legend(frameon=False, fontsize=9)
    save(figure, image)


def save(figure: Any, image: Path) -> None:
    """Write a figure."""
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=110)
