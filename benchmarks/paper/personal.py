"""Should γ be personal, rather than the median of the population? (open question 3 of the paper)

A population whose γ are known. A response has an uncertain outcome: a lottery whose outcomes are linear in features,
with unknown coefficients. People label pairs of responses by their own subjective utility. A learner estimates the
coefficients by maximum likelihood, with a model of how people perceive: nobody distorts probabilities (rational), all
do so with the medians, or each with their own γ. Then it chooses a response for each person, by the same model.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks.paper.drawing import color, panels, save
from benchmarks.paper.experiment import Claim, Experiment
from benchmarks.paper.intervals import bootstrap
from benchmarks.paper.protocol import Protocol
from humanline_fused.perception.prospect import GAMMA_GAINS, GAMMA_LOSSES, utility
from humanline_fused.tiny import Interval

SPREADS = (0.0, 0.1, 0.2, 0.3)
"""A person's γ are the medians plus a uniform number in ± the spread, so from .31 to .99 at most."""

ARMS = ("rational", "median", "own")
LABELS = (100, 500)
"""Numbers of labelled pairs. Beside them, a learner that knows the coefficients: the cost of its model of people alone.
"""

PEOPLE, FEATURES, OUTCOMES, CANDIDATES, CHOICES = 100, 6, 4, 4, 2000
STEPS, LEARNING_RATE = 100, 0.1
"""Of Adam in the fit."""

CONCENTRATION = 0.5
"""Of the Dirichlet distribution of a lottery's probabilities: most have a likely outcome and rare ones."""


@dataclass(frozen=True)
class Learner:
    """One learner of one population.

    Attributes:
        arm: its model of people.
        seed: of population and lotteries, equal for all arms.
        spread: of the population's γ.
        labels: labelled pairs; 0 where the coefficients are known.
        gained: mean utility of the chosen responses to the people who get them, as a share of what is to gain: 0 is a
            random response, 1 each person's best one.
        agrees: share of held-out pairs whose order by utility is the person's own.
        cpu_seconds: of the process, divided by the learners that were fitted at once.
    """

    arm: str
    seed: int
    spread: float
    labels: int
    gained: float
    agrees: float
    cpu_seconds: float


@dataclass(frozen=True)
class Lotteries:
    """Lotteries that people compare or choose from: [S, N, K, n] probabilities and [S, N, K, n, d] features.

    Attributes:
        shift: of a person's γ from the medians, [S, N, 1].
    """

    probabilities: Tensor
    features: Tensor
    shift: Tensor

    def utilities(self, coefficients: Tensor, arm: str) -> Tensor:
        """Return the utility of each lottery to its person, [S, N, K], by a model of people.

        Args:
            coefficients: [S, d].
            arm: a model; ``own`` is the truth.
        """
        outcomes = (self.features @ coefficients[:, None, None, :, None]).squeeze(-1)
        shift = {"own": self.shift, "median": torch.zeros_like(self.shift)}.get(arm)
        if shift is None:
            return utility(outcomes, self.probabilities, gamma_gains=1.0, gamma_losses=1.0)
        gammas = [(median + shift).expand(outcomes.shape[:-1]) for median in (GAMMA_GAINS, GAMMA_LOSSES)]
        return utility(outcomes, self.probabilities, gamma_gains=gammas[0], gamma_losses=gammas[1])


def drawn(generators: Sequence[torch.Generator], people: Tensor, number: int, candidates: int) -> Lotteries:
    """Draw ``number`` sets of lotteries for each seed, each for a random person.

    Args:
        people: shifts of γ, [S, people].
    """
    shape = (number, candidates, OUTCOMES)
    parts = []
    for generator, shifts in zip(generators, people, strict=True):
        weights = torch.full(shape, CONCENTRATION, dtype=torch.float64)
        weights = torch._standard_gamma(weights, generator=generator)  # pyright: ignore[reportPrivateImportUsage]
        features = torch.randn((*shape, FEATURES), generator=generator, dtype=torch.float64)
        person = torch.randint(len(shifts), (number,), generator=generator)
        parts.append((weights / weights.sum(-1, keepdim=True), features, shifts[person, None]))
    return Lotteries(*(torch.stack(part) for part in zip(*parts, strict=True)))


def fitted(lotteries: Lotteries, first_wins: Tensor, arm: str, steps: int) -> Tensor:
    """Return the coefficients with the highest likelihood of the labels under a model of people, [S, d].

    Args:
        lotteries: pairs, K = 2.
        first_wins: labels, [S, N], bool.
        steps: of the fit; a standard normal prior keeps few labels from infinite coefficients.
    """
    seeds = len(first_wins)
    coefficients = torch.full((seeds, FEATURES), 0.1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([coefficients], lr=LEARNING_RATE)
    sign = torch.where(first_wins, 1.0, -1.0)
    for _ in range(steps):
        first, second = lotteries.utilities(coefficients, arm).unbind(-1)
        loss = -logsigmoid(sign * (first - second)).sum(-1) + coefficients.square().sum(-1) / 2
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return coefficients.detach()


def run(protocol: Protocol) -> list[Learner]:
    seeds, small, found = protocol.final, protocol.small, []
    steps, choices = (5, 50) if small else (STEPS, CHOICES)
    for spread in SPREADS[::3] if small else SPREADS:
        generators = [torch.Generator().manual_seed(31_000_000 + seed) for seed in seeds]
        people = torch.stack([torch.rand(PEOPLE, generator=g, dtype=torch.float64) * 2 - 1 for g in generators])
        truth = torch.stack([torch.randn(FEATURES, generator=g, dtype=torch.float64) for g in generators])
        held_out = drawn(generators, spread * people, choices, CANDIDATES)
        pairs = drawn(generators, spread * people, max(LABELS), 2)
        first, second = pairs.utilities(truth, "own").unbind(-1)
        draws = torch.stack([torch.rand(max(LABELS), generator=g, dtype=torch.float64) for g in generators])
        first_wins = draws < (first - second).sigmoid()
        for labels in (0, LABELS[0]) if small else (0, *LABELS):
            for arm in ARMS:
                began = time.process_time()
                seen = Lotteries(*(x[:, :labels] for x in (pairs.probabilities, pairs.features, pairs.shift)))
                coefficients = fitted(seen, first_wins[:, :labels], arm, steps) if labels else truth
                gained, agrees = judged(held_out, truth, coefficients, arm)
                spent = (time.process_time() - began) / len(seeds)
                found += [
                    Learner(arm, seed, spread, labels, round(float(g), 6), round(float(a), 6), round(spent, 4))
                    for seed, g, a in zip(seeds, gained, agrees, strict=True)
                ]
    return found


def judged(held_out: Lotteries, truth: Tensor, coefficients: Tensor, arm: str) -> tuple[Tensor, Tensor]:
    """Return for each seed the share of the possible gain, and the share of pairs in the person's own order."""
    real, believed = held_out.utilities(truth, "own"), held_out.utilities(coefficients, arm)
    chosen = real.gather(-1, believed.argmax(-1, keepdim=True)).squeeze(-1)
    average = real.mean((1, 2))
    gained = (chosen.mean(1) - average) / (real.amax(-1).mean(1) - average)
    same = (real[..., 0] > real[..., 1]) == (believed[..., 0] > believed[..., 1])
    return gained, same.double().mean(1)


def difference(rows: Sequence[Learner], arm: str, over: str, column: str = "gained", **fixed: object) -> Interval:
    """Return the mean difference between two arms over the seeds, paired."""
    values = [{row.seed: getattr(row, column) for row in _taken(rows, arm=one, **fixed)} for one in (arm, over)]
    return bootstrap([values[0][seed] - values[1][seed] for seed in values[0]])


def mean_gained(rows: Sequence[Learner], **fixed: object) -> Interval:
    return bootstrap([row.gained for row in _taken(rows, **fixed)])


def _taken(rows: Sequence[Learner], **fixed: object) -> list[Learner]:
    return [row for row in rows if all(getattr(row, name) == value for name, value in fixed.items())]


def _levels(rows: Sequence[Learner]) -> list[int]:
    return sorted({row.labels for row in rows}, key=lambda labels: labels or float("inf"))


def _name(labels: int) -> str:
    return f"{labels} labels" if labels else "known coefficients"


def figure(rows: list[Learner], image: Path) -> None:
    spreads, levels = sorted({row.spread for row in rows}), _levels(rows)
    figure, axes = panels(len(levels))
    for one, labels in zip(axes, levels, strict=True):
        for number, arm in enumerate(ARMS):
            shade = color(arm, number)
            intervals = [mean_gained(rows, arm=arm, spread=spread, labels=labels) for spread in spreads]
            one.fill_between(spreads, [i.low for i in intervals], [i.high for i in intervals], color=shade, alpha=0.2)
            one.plot(spreads, [i.mean for i in intervals], "o-", color=shade, ms=4, label=f"γ: {arm}")
        one.set_title(_name(labels), loc="left")
        one.set_xlabel("spread of γ around the median")
    low = min(axis.get_ylim()[0] for axis in axes)
    for one in axes:
        one.set_ylim(low, 1.002)
    axes[0].set_ylabel("share of the possible utility gained")
    axes[0].legend(frameon=False, fontsize=9)
    save(figure, image)


def points(interval: Interval) -> str:
    """Return a difference of shares in percentage points."""
    mean, low, high = (100 * value for value in interval)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def paragraph(rows: list[Learner]) -> str:
    spreads, levels, widest = sorted({row.spread for row in rows}), _levels(rows), _widest(rows)
    own = {n: difference(rows, "own", "median", spread=widest, labels=n) for n in levels}
    median = {n: difference(rows, "median", "rational", spread=widest, labels=n) for n in levels}
    nothing = [_name(labels) for labels, one in own.items() if one.low <= 0]
    said = [f"With {' and '.join(nothing)} a person's own γ shows no gain over the median's."] if nothing else []
    said.append(
        f"At the widest spread (±{widest:g}) the own γ, known exactly, gains in points of the possible utility: "
        + "; ".join(f"{_name(labels)} {points(one)}" for labels, one in own.items())
        + ". The medians gain over no distortion at all: "
        + "; ".join(f"{_name(labels)} {points(one)}" for labels, one in median.items())
        + "."
    )
    lines = [
        " ".join(said),
        "",
        "| learner knows | spread | rational | median | own | own − median, points | right order: median, own |",
        "|---|---|---|---|---|---|---|",
    ]
    for labels in levels:
        for spread in spreads:
            fixed = {"labels": labels, "spread": spread}
            cells = [str(mean_gained(rows, arm=arm, **fixed)) for arm in ARMS]
            shares = [fmean(row.agrees for row in _taken(rows, arm=arm, **fixed)) for arm in ARMS[1:]]
            cells += [
                points(difference(rows, "own", "median", labels=labels, spread=spread)),
                f"{shares[0]:.1%}, {shares[1]:.1%}",
            ]
            lines.append(f"| {_name(labels)} | ±{spread:g} | {' | '.join(cells)} |")
    seeds, seconds = len({row.seed for row in rows}), sum(row.cpu_seconds for row in rows)
    lines += ["", f"{seeds} populations of {PEOPLE} people; {len(rows)} learners, {seconds:.0f} CPU seconds."]
    return "\n".join(lines)


def _widest(rows: Sequence[Learner]) -> float:
    return max(row.spread for row in rows)


def _ours(rows: list[Learner]) -> str:
    gains = {n: difference(rows, "own", "median", spread=_widest(rows), labels=n) for n in _levels(rows)}
    parts = "; ".join(f"{_name(labels)} {points(one)}" for labels, one in gains.items())
    return f"own γ over the median's at a spread of ±{_widest(rows):g}, points of the possible utility: {parts}"


def _verdict(rows: list[Learner]) -> str:
    widest = _widest(rows)
    gaining = [_name(n) for n in _levels(rows) if difference(rows, "own", "median", labels=n, spread=widest).low > 0]
    if len(gaining) == len(_levels(rows)):
        return "yes, if γ is known"
    return f"yes, if γ is known, with {', '.join(gaining)} only" if gaining else "no gain that the seeds can show"


EXPERIMENT = Experiment(
    name="personal",
    title="A γ for each person",
    kind=Learner,
    run=run,
    figure=figure,
    paragraph=paragraph,
    claims=(
        Claim(
            "should γ be personal rather than the population's median? (open question)",
            "not tested",
            _ours,
            _verdict,
            "γ changes a choice only between responses of nearly equal utility.",
        ),
    ),
    arms=(ARMS, SPREADS, LABELS, PEOPLE, FEATURES, OUTCOMES, CANDIDATES, CHOICES, CONCENTRATION),
)
