"""Means over seeds with bootstrap intervals, paired by seed where arms are compared."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from benchmarks.paper.run_rows import Run

FEWEST = 6
"""Seeds that a bootstrap needs: fewer give intervals that are too short."""


class Interval(NamedTuple):
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def signed(self) -> str:
        """The same with signs, for differences."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def bootstrap(values: Sequence[float], resamples: int = 10_000) -> Interval:
    """Return the mean over seeds with its 95 % percentile interval. For a comparison give paired differences.

    Raises:
        ValueError: fewer than six values.

    >>> bootstrap([1.0] * 6)
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    if len(values) < FEWEST:
        raise ValueError(f"expected at least {FEWEST} seeds for a bootstrap, got {len(values)}")
    given = torch.tensor(values, dtype=torch.float64)
    draws = torch.randint(len(values), (resamples, len(values)), generator=torch.Generator().manual_seed(0))
    means = given[draws].mean(1)
    return Interval(float(given.mean()), float(means.quantile(0.025)), float(means.quantile(0.975)))


def final(rows: Sequence[Run], **fixed: object) -> list[Run]:
    """Return the rows of the final seeds whose columns have the given values, in order of their seeds."""
    mine = [row for row in rows if row.phase == "final" and all(getattr(row, n) == v for n, v in fixed.items())]
    return sorted(mine, key=lambda row: row.seed)


def mean_reward(rows: Sequence[Run], **fixed: object) -> Interval:
    """Return the final seeds' mean reward with its interval."""
    return bootstrap([row.reward for row in final(rows, **fixed)])


def gain(rows: Sequence[Run], arm: str, over: str, **fixed: object) -> Interval:
    """Return the mean difference of reward between two arms, paired by seed.

    Raises:
        ValueError: the arms have other seeds.
    """
    mine, others = final(rows, arm=arm, **fixed), final(rows, arm=over, **fixed)
    if [row.seed for row in mine] != [row.seed for row in others]:
        raise ValueError(f"expected the same seeds for {arm!r} and {over!r}, got other ones ({fixed})")
    return bootstrap([a.reward - b.reward for a, b in zip(mine, others, strict=True)])


def wins(rows: Sequence[Run], arm: str, over: str, **fixed: object) -> str:
    """Return on how many seeds an arm has a higher reward than another, as ``14/16``."""
    mine, others = final(rows, arm=arm, **fixed), final(rows, arm=over, **fixed)
    return f"{sum(a.reward > b.reward for a, b in zip(mine, others, strict=True))}/{len(mine)}"


def best_of_tuning(rows: Sequence[Run], arms: Sequence[str], **fixed: object) -> str:
    """Return the arm whose best setting has the highest mean reward over all tuning seeds."""
    means: dict[str, float] = {}
    for arm in arms:
        by_setting: dict[tuple[object, ...], list[float]] = {}
        for row in rows:
            if row.phase == "tuning" and row.arm == arm and all(getattr(row, n) == v for n, v in fixed.items()):
                by_setting.setdefault(row.setting, []).append(row.reward)
        most = max(map(len, by_setting.values()))
        means[arm] = max(sum(values) / most for values in by_setting.values() if len(values) == most)
    return max(means, key=means.__getitem__)


def cpu_seconds(rows: Sequence[Run]) -> float:
    """Return the process seconds of all trainings."""
    return math.fsum(row.cpu_seconds or 0.0 for row in rows)
