"""Draws the curves of several runs; a run has the same colour and dashes in every panel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from humanline_fused import durable
from humanline_fused.looking.curves import Points

COLORS = ("#5f5f5f", "#c2410c", "#1d4ed8", "#15803d", "#a21caf", "#a16207")
DASHES = ("-", (0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
"""Dash patterns, so that overlapping curves stay visible and distinct without colour."""

FEW = 40
"""Largest number of points of a curve with a marker on each."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: quantity, and which direction is good.
        x, y: labels with units.
        curves: points by label of the run.
        limits: limits of y; None for automatic limits.
        note: lines under the title, as for runs that are not drawn.
        steep: whether y is logarithmic above 1, and linear below.
    """

    title: str
    x: str
    y: str
    curves: Mapping[str, Points]
    limits: tuple[float, float] | None = None
    note: str = ""
    steep: bool = False


def check_ending(image: Path) -> None:
    """Raise ValueError unless the extension of ``image`` is a picture format.

    >>> check_ending(Path("plot.png"))
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    formats = sorted(FigureCanvasAgg.get_supported_filetypes())
    if image.suffix.removeprefix(".").lower() not in formats:
        raise ValueError(f"{image}: expected a file that ends in one of {', '.join(formats)}")


def style_of(number: int) -> dict[str, Any]:
    """Return colour and dashes of the ``number``-th run."""
    return {"color": COLORS[number % len(COLORS)], "linestyle": DASHES[number % len(DASHES)], "linewidth": 1.8}


def draw(rows: Sequence[Sequence[Panel]], labels: Sequence[str], image: Path, *, title: str = "") -> None:
    """Draw a grid of panels with one legend, if there are several runs.

    Args:
        rows: rows of equal length; panels of a column have the same x.
        labels: labels of all runs, in the order of the legend.
        image: output file; its extension sets the format.
        title: title of the whole picture; without one the legend is at the top.

    Raises:
        ValueError: the extension is not a picture format.
        OSError: the image cannot be written.

    >>> loss = Panel("Loss: down is better", "optimizer step", "nats", {"plain": ([0, 1], [0.7, 0.6])})
    >>> draw([[loss]], ["plain"], Path("loss.png"), title="One run")  # doctest: +SKIP
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    check_ending(image)
    styles = {label: style_of(number) for number, label in enumerate(labels)}
    columns = max(map(len, rows))
    figure = Figure(figsize=({1: 7, 2: 11}.get(columns, 12), 0.9 + 3.1 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=13)
    grid = figure.subplots(len(rows), columns, squeeze=False, sharex="col")
    for panels, cells in zip(rows, grid, strict=True):
        for panel, axes in zip(panels, cells, strict=True):
            for label, (xs, ys) in panel.curves.items():
                axes.plot(xs, ys, marker="o" if len(xs) <= FEW else None, markersize=3.5, **styles[label])
            axes.set_title("\n".join(filter(None, (panel.title, panel.note))), fontsize=10, loc="left")
            axes.set_xlabel(panel.x)
            axes.set_ylabel(panel.y)
            axes.tick_params(labelbottom=True)
            if panel.steep:
                axes.set_yscale("symlog", linthresh=1)
                axes.yaxis.set_major_formatter("{x:g}")
            else:
                axes.ticklabel_format(axis="y", useOffset=False)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            if panel.limits:
                axes.set_ylim(*panel.limits)
    lines = [Line2D([], [], label=label, **style) for label, style in styles.items()]
    where = "outside lower center" if title else "outside upper center"
    if len(labels) > 1:
        figure.legend(handles=lines, loc=where, ncols=min(len(lines), 4), frameon=False, handlelength=3, fontsize=12)
    save(figure, image, dpi=130)


def save(figure: Any, image: Path, dpi: int) -> None:
    """Write a figure of matplotlib; after an error the former picture stays."""
    with durable.writing_output(image) as file:
        figure.savefig(file, format=image.suffix.removeprefix(".").lower(), dpi=dpi)
