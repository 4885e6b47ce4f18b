"""What predicts humanline's gain? Diagnostics before training, and early rewards, against the results of ``quality``.

The variable is found on GRPO's sources of data and judged on DPO's. Nothing is trained here.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.paper import quality
from benchmarks.paper.data_quality import DIAGNOSTICS, DataRun
from benchmarks.paper.drawing import OTHER, panels, save
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.intervals import final
from benchmarks.paper.protocol import Protocol
from benchmarks.paper.run_rows import Run
from benchmarks.results import RESULTS, read

FIT = "GRPO"
"""The part of the conditions that the variable is found on."""

PERMUTATIONS = 10_000
ALMOST_SURE = 0.05
STRONG = 0.6
"""A rank correlation on conditions that were not used to find the variable; both numbers were fixed beforehand."""


@dataclass(frozen=True)
class Point:
    """One condition: means over its final seeds.

    Attributes:
        part: objective.
        condition: its name.
        gain: humanline's final reward minus plain's.
        plain: plain's final reward.
        data_logp, data_surplus, data_kl, data_ess, data_tail, data_reward, data_contrast: as in ``DataRun``.
        start: reward before training.
        early_rise: plain's rise of reward over the first fifth of the steps.
        early_gain: humanline's reward minus plain's after a fifth of the steps.
    """

    part: str
    condition: str
    gain: float
    plain: float
    data_logp: float
    data_surplus: float
    data_kl: float
    data_ess: float
    data_tail: float
    data_reward: float
    data_contrast: float
    start: float
    early_rise: float
    early_gain: float


VARIABLES = (*DIAGNOSTICS, "start", "early_rise", "early_gain")
TARGETS = {"gain": "humanline's gain over plain", "plain": "plain's final reward"}


def run(protocol: Protocol) -> list[Point]:
    """Return a point for each source of data and objective in the results of ``quality``.

    Raises:
        FileNotFoundError: it has none.
    """
    used = quality.EXPERIMENT
    return points(used.run(protocol) if protocol.small else read(RESULTS / "paper" / f"{used.name}.csv", used.kind)[1])


def points(rows: Sequence[DataRun]) -> list[Point]:
    """Return a point for each condition in which plain and humanline were trained."""
    found = []
    for objective, condition in dict.fromkeys((row.objective, row.condition) for row in rows):
        fixed = {"objective": objective, "condition": condition}
        usual, ours = final(rows, arm="plain", **fixed), final(rows, arm="humanline", **fixed)
        if not usual:
            continue
        plain_reward, early = _mean([row.reward for row in usual]), _mean([_early(row) for row in usual])
        found.append(
            Point(
                part=objective.upper(),
                condition=condition,
                gain=_mean([row.reward for row in ours]) - plain_reward,
                plain=plain_reward,
                start=_mean([row.start for row in usual]),
                early_rise=early - _mean([row.start for row in usual]),
                early_gain=_mean([_early(row) for row in ours]) - early,
                **{name: _mean([getattr(row, name) for row in usual]) for name in DIAGNOSTICS},
            )
        )
    return found


def _early(row: Run) -> float:
    """Return the reward after a fifth of the steps, at the nearest evaluation."""
    place = min(range(len(row.steps)), key=lambda i: abs(row.steps[i] - row.steps[-1] / 5))
    return row.rewards[place]


def _mean(values: Sequence[float]) -> float:
    return float(f"{math.fsum(values) / len(values):.6g}")


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return Spearman's ρ, with mean ranks for equal values; 0 if all xs or all ys are equal.

    >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 100.0, 1000.0])
    1.0
    """
    ranks = torch.tensor([_ranks(xs), _ranks(ys)], dtype=torch.float64)
    ranks = ranks - ranks.mean(1, keepdim=True)
    sizes = ranks.norm(dim=1)
    return float(ranks[0] @ ranks[1] / (sizes[0] * sizes[1])) if sizes.min() > 0 else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]  # type: ignore


def chance(found: Sequence[Point], target: str, reached: float) -> float:
    """Return how often some variable correlates at least so strongly with a random order of the target."""
    ranks = torch.tensor([_ranks([getattr(p, name) for p in found]) for name in (*VARIABLES, target)])
    ranks = ranks.double() - ranks.double().mean(1, keepdim=True)
    ranks = ranks / ranks.norm(dim=1, keepdim=True).clamp(min=1e-12)
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(len(found), generator=generator) for _ in range(PERMUTATIONS)])
    strongest = (ranks[-1][orders] @ ranks[:-1].T).abs().amax(1)
    return float((strongest >= abs(reached) - 1e-9).double().mean())


@dataclass(frozen=True)
class Found:
    """The variable with the strongest rank correlation on the fitted part."""

    target: str
    variable: str
    correlation: float
    chance: float
    slope: float
    intercept: float
    pivot: float
    """0 for a gain, the fitted part's mean for a reward: does a prediction fall on the right side of it?"""

    def predicted(self, point: Point) -> float:
        """Return the straight line's value."""
        return self.intercept + self.slope * getattr(point, self.variable)


def strongest(found: Sequence[Point], target: str) -> Found:
    """Return the variable that is found on the fitted part, with its least-squares line."""
    fit = part(found, FIT)
    ys = [getattr(p, target) for p in fit]
    correlations = {name: rank_correlation([getattr(p, name) for p in fit], ys) for name in VARIABLES}
    name = max(correlations, key=lambda one: abs(correlations[one]))
    xs = torch.tensor([getattr(p, name) for p in fit], dtype=torch.float64)
    centred, mean = xs - xs.mean(), sum(ys) / len(ys)
    slope = float(centred @ torch.tensor(ys, dtype=torch.float64) / centred.square().sum().clamp(min=1e-12))
    reached, pivot = correlations[name], 0.0 if target == "gain" else mean
    return Found(target, name, reached, chance(fit, target, reached), slope, mean - slope * float(xs.mean()), pivot)


def part(found: Sequence[Point], name: str) -> list[Point]:
    """Return the points of a part."""
    return [point for point in found if point.part == name]


def others(found: Sequence[Point]) -> list[str]:
    """Return the parts that no variable is found on."""
    return [name for name in dict.fromkeys(point.part for point in found) if name != FIT]


@dataclass(frozen=True)
class Judgement:
    """How well a variable predicts on a part that was not used to find it."""

    correlation: float
    explained: float
    hits: str

    def __str__(self) -> str:
        return f"ρ = {self.correlation:+.2f}, R² = {self.explained:.2f}, the right side {self.hits}"


def judge(one: Found, found: Sequence[Point]) -> Judgement:
    """Return ρ, R² of the line, and how often the line is on the right side of the pivot."""
    xs, ys = [getattr(p, one.variable) for p in found], [getattr(p, one.target) for p in found]
    mean, guesses = sum(ys) / len(ys), [one.predicted(p) for p in found]
    left = sum((y - guess) ** 2 for y, guess in zip(ys, guesses, strict=True))
    spread = sum((y - mean) ** 2 for y in ys)
    hits = sum((y > one.pivot) == (guess > one.pivot) for y, guess in zip(ys, guesses, strict=True))
    return Judgement(rank_correlation(xs, ys), 1 - left / spread if spread else 0.0, f"{hits} of {len(ys)}")


def predicts(one: Found, found: Sequence[Point]) -> bool:
    """Return whether a variable is more than chance where it was found, and strong with the same sign elsewhere."""
    elsewhere = [judge(one, part(found, name)).correlation for name in others(found)]
    return one.chance < ALMOST_SURE and all(r * one.correlation > 0 and abs(r) >= STRONG for r in elsewhere)


def figure(rows: list[Point], image: Path) -> None:
    figure, axes = panels(len(TARGETS), 4.8, 3.8)
    shades = dict(zip([FIT, *others(rows)], itertools.cycle(OTHER), strict=False))
    for axis, (target, words) in zip(axes, TARGETS.items(), strict=True):
        one = strongest(rows, target)
        for name, shade in shades.items():
            mine = part(rows, name)
            label = f"{name} (found here)" if name == FIT else name
            xs, ys = ([getattr(p, n) for p in mine] for n in (one.variable, target))
            axis.scatter(xs, ys, color=shade, label=label, s=28)
        xs = sorted(getattr(p, one.variable) for p in rows)
        ends = [one.intercept + one.slope * x for x in (xs[0], xs[-1])]
        axis.plot([xs[0], xs[-1]], ends, color=shades[FIT], lw=1, ls="--", label=f"line through {FIT}")
        if target == "gain":
            axis.axhline(0, color="black", lw=0.8)
        axis.set_xlabel(one.variable)
        axis.set_ylabel(words)
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, image)


def paragraph(rows: list[Point]) -> str:
    lines = []
    for target, words in TARGETS.items():
        one = strongest(rows, target)
        elsewhere = "; ".join(f"{name}: {judge(one, part(rows, name))}" for name in others(rows))
        verdict = "predicts" if predicts(one, rows) else "does not predict"
        lines.append(
            f"- `{one.variable}` {verdict} {words}. It has the strongest rank correlation on {FIT}, "
            f"ρ = {one.correlation:+.2f} over {len(part(rows, FIT))} sources (chance that one of {len(VARIABLES)} "
            f"variables does as well on a random order: {one.chance:.2g}). Elsewhere, {elsewhere}."
        )
    names = [FIT, *others(rows)]
    lines += ["", f"| rank correlation with | {' | '.join(f'{w}: {n}' for w in ('gain', 'plain') for n in names)} |"]
    lines.append(f"|---|{'---|' * (2 * len(names))}")
    correlation: Callable[[str, str, str], float] = lambda variable, target, name: rank_correlation(  # noqa: E731
        [getattr(p, variable) for p in part(rows, name)], [getattr(p, target) for p in part(rows, name)]
    )
    for variable in VARIABLES:
        cells = [f"{correlation(variable, target, name):+.2f}" for target in TARGETS for name in names]
        lines.append(f"| `{variable}` | {' | '.join(cells)} |")
    same = [name for name in VARIABLES if _everywhere([correlation(name, "gain", one) for one in names])]
    lines += [
        "",
        f"Seen afterwards, not found by the rule: {_joined(same)} |ρ| ≥ {STRONG:g} with the gain and the same sign "
        f"for {' and '.join(names)}.",
        "",
        f"Rule, fixed beforehand: a variable predicts if chance is below {ALMOST_SURE:g} where it was found and |ρ| is "
        f"at least {STRONG:g} with the same sign elsewhere. The right side is that of 0 for a gain, of the fitted "
        f"mean for a reward. {len(rows)} points; nothing is trained here.",
    ]
    return "\n".join(lines)


def _everywhere(correlations: list[float]) -> bool:
    return min(map(abs, correlations)) >= STRONG and len({one > 0 for one in correlations}) == 1


def _joined(names: list[str]) -> str:
    if not names:
        return "no variable has"
    return f"{', '.join(f'`{name}`' for name in names)} {'has' if len(names) == 1 else 'have'}"


EXPERIMENT = Experiment(
    name="predict",
    title="What predicts the gain",
    kind=Point,
    run=run,
    figure=figure,
    paragraph=paragraph,
    arms=(FIT, VARIABLES, ALMOST_SURE, STRONG),
)
