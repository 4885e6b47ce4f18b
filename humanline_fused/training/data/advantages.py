"""From the rewards of a group to the advantages of its completions."""

import math
from collections.abc import Sequence

ADVANTAGE_EPSILON = 1e-2
"""Added to the standard deviation of rewards (HALOs at aa02f66; TRL has 1e-4)."""


def deviation(values: Sequence[float]) -> float:
    """Population standard deviation; TRL takes the sample's.

    >>> deviation([0.0, 2.0])
    1.0
    """
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def advantages(rewards: Sequence[float], scale: str) -> list[float]:
    """``s − mean`` within a group, divided by the group's ``population standard deviation + 1e-2`` if asked.

    Args:
        rewards: of the completions of one prompt.
        scale: ``"group"`` divides; ``"none"`` does not, and neither does ``"batch"``, whose divisor is known when the
            examples of a step are (:func:`batch_scale`).

    Source: arXiv 2509.24207, section 5; HALOs at aa02f66.

    >>> advantages([1.0, 1.0], "group"), advantages([0.0, 3.0], "none")
    ([0.0, 0.0], [-1.5, 1.5])
    """
    mean = math.fsum(rewards) / len(rewards)
    divisor = deviation(rewards) + ADVANTAGE_EPSILON if scale == "group" else 1.0
    noise = len(rewards) * math.ulp(max(map(abs, rewards)))  # a mean of equal rewards is not always one of them
    return [0.0 if abs(reward - mean) <= noise else (reward - mean) / divisor for reward in rewards]


def batch_scale(rewards: Sequence[float]) -> float:
    """What ``scale_rewards="batch"`` divides the advantages of one optimizer step by.

    The standard deviation of the rewards as they are, not of their distances from the groups' means, as in TRL.

    Args:
        rewards: of all completions of the step, on all processes.

    >>> batch_scale([0.0, 2.0])
    1.01
    """
    return deviation(rewards) + ADVANTAGE_EPSILON
