"""Means over seeds with bootstrap intervals."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

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
    means = given[_draws(len(values), resamples)].mean(1)
    low, high = means.quantile(means.new_tensor([0.025, 0.975])).tolist()
    return Interval(float(given.mean()), low, high)


@lru_cache(maxsize=8)
def _draws(number: int, resamples: int) -> torch.Tensor:
    return torch.randint(number, (resamples, number), generator=torch.Generator().manual_seed(0))
