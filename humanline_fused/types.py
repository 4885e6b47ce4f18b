"""Arguments of losses besides tensors, and their results."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Impl = Literal["auto", "triton", "eager"]
"""The implementation. A named one raises if it cannot run; only ``"auto"`` chooses."""

DPOLossType = Literal["sigmoid", "ipo", "hinge", "sigmoid_norm"]
"""The losses of pairs that ``dpo_loss`` computes, by TRL's names."""


@dataclass(frozen=True)
class HumanlineClamp:
    """Humanline's bounds on each token's log-ratio ``log π_θ − log π_ref``.

    Args:
        log_epsilon_P: lower bound, nats, ≤ 0. The paper's default −1.5 is a ratio of 0.223.
        log_epsilon_R: upper bound, nats, ≥ 0. The paper's default 1.5 is a ratio of 4.482.

    Infinite bounds are legal and give the plain loss.

    Raises:
        ValueError: a bound is NaN, or ``log_epsilon_P ≤ 0 ≤ log_epsilon_R`` does not hold. A token that does not
            count has log-ratio 0, and bounds that exclude 0 would let it contribute.

    Source: arXiv 2509.24207, section 4; names and defaults of ContextualAI/HALOs at aa02f66.

    >>> HumanlineClamp().log_epsilon_R
    1.5
    """

    log_epsilon_P: float = -1.5
    log_epsilon_R: float = 1.5

    def __post_init__(self) -> None:
        for name in ("log_epsilon_P", "log_epsilon_R"):
            bound = getattr(self, name)
            if isinstance(bound, bool) or not isinstance(bound, int | float) or math.isnan(bound):
                raise ValueError(f"{name}: expected a number of nats, got {bound!r}")
        if not self.log_epsilon_P <= 0 <= self.log_epsilon_R:
            raise ValueError(
                "expected log_epsilon_P <= 0 <= log_epsilon_R, "
                f"got log_epsilon_P={self.log_epsilon_P}, log_epsilon_R={self.log_epsilon_R}"
            )


PAPER_CLAMP = HumanlineClamp()


@dataclass(frozen=True, eq=False)
class ClampedOutput:
    """Results that all operations with a clamp share, detached.

    Attributes:
        logp: log-probs of the targets under the policy, [B, T], nats, 0 where the mask is False.
        ref_logp: the same under the reference.
        clamped_low_fraction: share of the tokens that count with a log-ratio below ``log_epsilon_P``, [].
        clamped_high_fraction: share with a log-ratio above ``log_epsilon_R``, [].
    """

    logp: Tensor
    ref_logp: Tensor
    clamped_low_fraction: Tensor
    clamped_high_fraction: Tensor

    @property
    def unclamped_fraction(self) -> Tensor:
        """Share of the tokens that count with a log-ratio within the bounds, [].

        A token right after a sync has log-ratio 0 and counts as unclamped (HALOs leaves it out and reads 0).
        """
        return 1 - self.clamped_low_fraction - self.clamped_high_fraction


@dataclass(frozen=True, eq=False)
class TokenLogpOutput:
    """[B, T], nats, with a graph to the logits; 0 where the mask is False.

    Attributes:
        logp: log-probs of the targets.
        entropy: −Σ p log p over the vocabulary, of each token's distribution.
    """

    logp: Tensor
    entropy: Tensor


@dataclass(frozen=True, eq=False)
class TokenLogRatioOutput(ClampedOutput):
    """``log_ratio``: clamped, [B, T], nats, 0 where the mask is False, with a graph to the policy."""

    log_ratio: Tensor


@dataclass(frozen=True, eq=False)
class DPOOutput(ClampedOutput):
    """``loss``: [] with a graph. ``rewards``: β R(y) of each sequence, [B], detached, whatever the ``loss_type``."""

    loss: Tensor
    rewards: Tensor


@dataclass(frozen=True, eq=False)
class KTOOutput(ClampedOutput):
    """``loss``: [] with a graph. ``rewards``: β R(y) of each sequence, [B], detached. ``kl``: z0 as given, nats, []."""

    loss: Tensor
    rewards: Tensor
    kl: Tensor


@dataclass(frozen=True, eq=False)
class GRPOOutput(ClampedOutput):
    """``loss``: [] with a graph; the rest is detached.

    Attributes:
        kl: mean of k3 over the tokens that count, nats, [].
        clip_low_fraction: share of the tokens at PPO's lower bound (A < 0 and ratio < 1 − epsilon), [].
        clip_high_fraction: share at its upper bound (A > 0 and ratio > 1 + epsilon_high), [].
    """

    loss: Tensor
    kl: Tensor
    clip_low_fraction: Tensor
    clip_high_fraction: Tensor

    @property
    def clip_fraction(self) -> Tensor:
        """Share of the tokens that count with a policy gradient of 0 because of PPO's clip, []."""
        return self.clip_low_fraction + self.clip_high_fraction
