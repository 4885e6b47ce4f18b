"""Histograms of a dataset's scores: token log-prob, and surplus or log-ratio, by sequence and by token."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from humanline_fused.looking.pictures import COLORS, check_ending, save
from humanline_fused.looking.scored_data import ScoredData
from humanline_fused.looking.verdicts import PAPER_BOTTOM_QUARTILE
from humanline_fused.types import HumanlineClamp

BINS = 50
WIDEST = 0.995
"""Share of the values that is drawn; the rest is in the outer bins."""


def draw_histograms(data: ScoredData, clamp: HumanlineClamp, other: str, image: Path) -> None:
    """Draw the scores of a dataset.

    Args:
        data: the scores.
        clamp: humanline's bounds, drawn beside log-ratios.
        other: name of the other model; empty without one.
        image: output file; its extension sets the format.

    Raises:
        ValueError: the extension is not a picture format.
        OSError: the image cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_ending(image)
    figure = Figure(figsize=(5.2 * (3 if other else 2), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3 if other else 2)
    _histogram(axes[0], _means(data.logp), "Mean token log-prob of a sequence", "nats per token")
    axes[0].axvspan(*PAPER_BOTTOM_QUARTILE, color=COLORS[5], alpha=0.15, lw=0, label="the paper's bottom quartile")
    axes[0].legend(frameon=False, fontsize=9)
    _histogram(
        axes[1],
        _means(data.surplus),
        "Surplus surprisal of a sequence\n0: as of the model's own samples",
        "nats per token",
    )
    axes[1].axvline(0, color="black", lw=1)
    if other:
        ratio = torch.cat(data.log_ratio)
        _histogram(axes[2], ratio, f"Log-ratio of a token, log π − log π_{other}\nlines: the clamp's bounds", "nats")
        axes[2].set_yscale("log")
        for bound in (clamp.log_epsilon_P, clamp.log_epsilon_R):
            axes[2].axvline(bound, color="black", lw=1, ls="--")
    for one in axes:
        one.set_ylabel("tokens" if one is axes[-1] and other else "sequences")
        one.spines[["top", "right"]].set_visible(False)
    save(figure, image, dpi=130)


def _means(values: list[Tensor]) -> Tensor:
    return torch.stack([one.double().mean() for one in values])


def _histogram(axes: Any, values: Tensor, title: str, label: str) -> None:
    low, high = _ends(values)
    axes.hist(values.clamp(low, high).tolist(), bins=BINS, range=(low, high), color=COLORS[2], alpha=0.8)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(label)


def _ends(values: Tensor) -> tuple[float, float]:
    """Return the range that holds ``WIDEST`` of the values."""
    ordered = values.double().flatten().sort().values
    cut = int((1 - WIDEST) / 2 * len(ordered))
    low, high = ordered[cut].item(), ordered[-1 - cut].item()
    return (low, high) if high > low else (low - 0.5, high + 0.5)
