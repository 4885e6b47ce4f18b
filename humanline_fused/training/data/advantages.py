"""Advantages of completions, computed from the rewards of their group."""

import math
from collections.abc import Sequence

ADVANTAGE_EPSILON = 1e-2
"""Added to the standard deviation of rewards (HALOs at aa02f66; TRL adds 1e-4)."""


def deviation(values: Sequence[float]) -> float:
    """Return the population standard deviation; TRL uses the sample standard deviation.

    >>> deviation([0.0, 2.0])
    1.0
    """
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def advantages(rewards: Sequence[float], scale: str) -> list[float]:
    """Return ``s − mean`` of a group, divided by its ``population standard deviation + 1e-2`` if ``scale="group"``.

    Args:
        rewards: rewards of the completions of one prompt.
        scale: ``"group"`` divides; ``"none"`` does not. ``"batch"`` does not divide here, because its divisor depends
            on all examples of the step (:func:`batch_scale`).

    Source: arXiv 2509.24207, section 5; HALOs at aa02f66.

    >>> advantages([1.0, 1.0], "group"), advantages([0.0, 3.0], "none")
    ([0.0, 0.0], [-1.5, 1.5])
    """
    mean = math.fsum(rewards) / len(rewards)
    divisor = deviation(rewards) + ADVANTAGE_EPSILON if scale == "group" else 1.0
    noise = len(rewards) * math.ulp(max(map(abs, rewards)))  # the rounded mean of equal rewards may differ from them
    return [0.0 if abs(reward - mean) <= noise else (reward - mean) / divisor for reward in rewards]


def batch_scale(rewards: Sequence[float]) -> float:
    """Return the divisor of the advantages of one optimizer step under ``scale_rewards="batch"``.

    As in TRL, it is the standard deviation of the rewards themselves, not of their distances from the group means.

    Args:
        rewards: rewards of all completions of the step, on all processes.

    >>> batch_scale([0.0, 2.0])
    1.01
    """
    return deviation(rewards) + ADVANTAGE_EPSILON
