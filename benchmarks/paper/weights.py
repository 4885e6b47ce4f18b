"""Which samples come closest to what people perceive? Closed forms for normal outcomes, no training.

The outcome z = log π_θ(y) − log π_ref(y) of the policy's samples is taken as standard normal around the reference
point. Samples of the reference have a density e^(−z) times as high, which is normal around −1, and those of them that
humanline sampling keeps are normal around −(1 − g) (docs/math.md, equation 25).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.paper.drawing import OTHER, panels, save
from benchmarks.paper.experiment import Claim, Experiment
from benchmarks.paper.protocol import Protocol
from humanline_fused.perception.prospect import decision_weights

BOUND = 1.5
"""The paper's clamp, nats."""
WIDEST, BINS = 8.0, 3200
"""Outcomes from −8 to 8, and the bins between them."""
G = 0.49
"""Published defaults of humanline sampling."""
WIDTHS = tuple(round(1 + 0.05 * step, 2) for step in range(21))


@dataclass(frozen=True)
class Source:
    """A distribution of outcomes.

    Attributes:
        name: whose outcomes.
        mean, deviation: of the normal distribution; None for the perceived one.
        divergence: KL(perceived ‖ this one), nats.
        beyond: probability of outcomes outside of ±1.5, where the clamp stops the gradient.
    """

    name: str
    mean: float | None
    deviation: float | None
    divergence: float
    beyond: float


def outcomes() -> tuple[Tensor, Tensor]:
    """Return the middles and the edges of the bins."""
    edges = torch.linspace(-WIDEST, WIDEST, BINS + 1, dtype=torch.float64)
    return (edges[1:] + edges[:-1]) / 2, edges


def normal(edges: Tensor, mean: float, deviation: float) -> Tensor:
    """Return the probability of each bin; the tails belong to the outermost bins."""
    scores = (edges - mean) / deviation
    scores[0], scores[-1] = -torch.inf, torch.inf
    # torch.special.ndtr is 0 beyond -8.3. Each tail is computed from its own side, without cancellation.
    below, above = (0.5 * torch.erfc(side * scores / math.sqrt(2)) for side in (-1, 1))
    return torch.where(scores[:-1] > 0, -above.diff(), below.diff())


def perceived(middles: Tensor, edges: Tensor) -> Tensor:
    """Return the decision weights of the policy's outcomes, divided by their sum (.875)."""
    weights = decision_weights(middles, normal(edges, 0, 1))
    return weights / weights.sum()


def run(protocol: Protocol) -> list[Source]:
    middles, edges = outcomes()
    omega = perceived(middles, edges)
    outside = middles.abs() > BOUND

    def source(name: str, mean: float, deviation: float) -> Source:
        q = normal(edges, mean, deviation)
        kl = float((torch.xlogy(omega, omega) - torch.xlogy(omega, q)).sum())
        return Source(name, mean, deviation, round(kl, 6), round(float(q[outside].sum()), 6))

    wide = [source(f"policy, {deviation:g} times as wide", 0, deviation) for deviation in WIDTHS[1:]]
    return [
        Source("perceived", None, None, 0.0, round(float(omega[outside].sum()), 6)),
        source("policy", 0, 1),
        source("reference", -1, 1),
        source(f"kept by humanline sampling of the reference, g = {G:g}", -(1 - G), 1),
        *wide,
    ]


def best(rows: Sequence[Source]) -> Source:
    """Return the source with the smallest divergence."""
    return min((row for row in rows if row.mean is not None), key=lambda row: row.divergence)


def figure(rows: list[Source], image: Path) -> None:
    middles, edges = outcomes()
    figure, axes = panels(1, width=5.5)
    width = edges[1] - edges[0]
    omega = perceived(middles, edges) / width
    axes[0].plot(middles, omega.clamp(max=0.6), color="black", lw=2, label="perceived")
    shown = [row for row in rows if row.mean is not None and row.deviation == 1] + [best(rows)]
    for shade, row in zip(("#1d4ed8", "#6b7280", "#15803d", OTHER[0]), shown, strict=True):
        assert row.mean is not None
        assert row.deviation is not None
        axes[0].plot(middles, normal(edges, row.mean, row.deviation) / width, color=shade, lw=1.5, label=row.name)
    for bound in (-BOUND, BOUND):
        axes[0].axvline(bound, color="#a16207", lw=1, ls="--")
    axes[0].set_xlim(-4, 4)
    axes[0].set_xlabel("outcome log π − log π_ref, nats; dashed: the clamp")
    axes[0].set_ylabel("density")
    axes[0].legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.2))
    save(figure, image)


def paragraph(rows: list[Source]) -> str:
    closest, omega = best(rows), rows[0]
    shown = [row for row in rows if row.mean is None or row.deviation == 1 or row is closest]
    policy = _named(rows, "policy")
    lines = [
        f"Wider samples than the policy's own are closest to what people perceive: {closest.name}, KL "
        f"{closest.divergence:.3f} nats, against {policy.divergence:.3f} of the policy. Perception puts "
        f"{omega.beyond:.0%} of its weight on outcomes beyond ±{BOUND:g} nats, where the policy has "
        f"{policy.beyond:.0%} and where the clamp stops the gradient: the clamp is a trust region, not a form of Ω. "
        "Humanline sampling moves the reference's samples towards the policy's, but does not widen them.",
        "",
        f"| samples | KL(perceived ‖ samples), nats | beyond ±{BOUND:g} |",
        "|---|---|---|",
    ]
    lines += [f"| {row.name} | {row.divergence:.3f} | {row.beyond:.1%} |" for row in shown]
    return "\n".join(lines)


def _named(rows: Sequence[Source], name: str) -> Source:
    return next(row for row in rows if row.name == name)


def _closer(rows: list[Source]) -> str:
    policy, reference = _named(rows, "policy"), _named(rows, "reference")
    if policy.divergence >= reference.divergence:
        return "does not hold"
    wider = best(rows) is not policy
    return "holds for normal outcomes" + (", but wider samples are closer still" if wider else "")


EXPERIMENT = Experiment(
    name="weights",
    title="What people perceive",
    kind=Source,
    run=run,
    figure=figure,
    paragraph=paragraph,
    claims=(
        Claim(
            "the policy's own samples are closer to what people perceive than stale ones",
            "argued in section 3",
            lambda rows: (
                "KL to the perceived distribution, nats: "
                + ", ".join(f"{row.name} {row.divergence:.2f}" for row in (*rows[1:3], best(rows)))
            ),
            _closer,
            "Perception over-weights both ends, so the closest samples are wider than the policy's.",
        ),
    ),
    arms=(BOUND, WIDEST, BINS, G, WIDTHS),
)
