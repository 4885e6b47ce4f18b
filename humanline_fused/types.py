"""Arguments of losses besides tensors, and their results."""

import math
import sys
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

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
            is_number = not isinstance(bound, bool) and isinstance(bound, int | float)
            # Not one that float32 does not hold; NaN is False in both.
            if not is_number or not (abs(bound) <= torch.finfo(torch.float32).max or abs(bound) == math.inf):
                raise ValueError(f"{name}: expected a number of nats, got {bound!r:.80}")
        if not self.log_epsilon_P <= 0 <= self.log_epsilon_R:
            raise ValueError(
                "expected log_epsilon_P <= 0 <= log_epsilon_R, "
                f"got log_epsilon_P={self.log_epsilon_P}, log_epsilon_R={self.log_epsilon_R}"
            )


PAPER_CLAMP = HumanlineClamp()


Ranks = ProcessGroup | Literal["local"] | None
"""The ranks of a reduction: a group, this rank alone (``"local"``), or all ranks (``None``)."""


@dataclass(frozen=True, eq=False)
class HumanlineSampling:
    """Humanline sampling: each token is kept with a random threshold, or its gradient is stopped.

    A token's value stays in the loss. It has no gradient if ``π_θ/π_ref < M_P B_P`` or ``π_ref/π_θ < M_R B_R``, with
    ``B_P ~ Beta(gamma_P, beta_P)`` and ``B_R ~ Beta(gamma_R, beta_R)``, drawn for each token and call (docs/math.md,
    equation 23). With β = 1 the kept tokens of the reference are distributed as ``π_ref^(1 − g) π_θ^g``,
    ``g = gamma_P − gamma_R``.

    Args:
        gamma_P, gamma_R: ≥ 0; 0 keeps every token on that side.
        beta_P, beta_R: > 0.
        generator: source of the draws; None is torch's default generator of the device. A generator on the CPU gives
            the same draws on every device. Ranks that hold slices of one vocabulary (``LMHead(group=...)``) need
            generators of one seed.
        draws: log B_P and log B_R, [2, B, T], float64, drawn ahead
            (:func:`humanline_fused.perception.sampling.log_draws`). None: this call draws them.
        maxima: M_P and M_R, numbers ≥ 1 or tensors []. None: the largest ratio, and the largest inverse ratio, among
            the tokens that count in this call, at least 1. They decide how many tokens are kept, so give those of the
            whole step where a call sees a part of it.
        group: the ranks whose tokens the maxima of None are taken over; each must make the call.

    Raises:
        ValueError: a number lies outside its interval.

    Source: arXiv 2509.24207, section 4; the defaults are the last that the authors published.

    >>> HumanlineSampling().gamma_P
    0.5
    """

    gamma_P: float = 0.5
    beta_P: float = 1.0
    gamma_R: float = 0.01
    beta_R: float = 1.0
    generator: torch.Generator | None = None
    draws: Tensor | None = None
    maxima: tuple[Tensor | float, Tensor | float] | None = None
    group: Ranks = None

    def __post_init__(self) -> None:
        for name in ("gamma_P", "beta_P", "gamma_R", "beta_R"):
            number, least = getattr(self, name), "> 0" if name.startswith("beta") else ">= 0"
            is_number = not isinstance(number, bool) and isinstance(number, int | float)
            if not is_number or not 0 <= number <= sys.float_info.max or (least == "> 0" and number == 0):
                raise ValueError(f"{name}: expected a finite number {least}, got {number!r}")
        if self.maxima is not None and len(self.maxima) != 2:
            raise ValueError(f"maxima: expected M_P and M_R, got {self.maxima!r}")
        for name, maximum in zip(("M_P", "M_R"), self.maxima or (), strict=False):
            if not isinstance(maximum, Tensor) and not 1 <= maximum <= sys.float_info.max:
                raise ValueError(f"maxima: expected {name} >= 1, got {maximum!r}")


Perception = Literal["clamp", "sampling"] | HumanlineSampling
"""Humanline's form: the clamp, or sampling with its default settings or with those given."""


@dataclass(frozen=True, eq=False)
class ClampedOutput:
    """Results that all operations with a clamp share, detached.

    With humanline sampling, ``clamped_low_fraction`` is the share of tokens rejected because their ratio is small,
    ``clamped_high_fraction`` the share of the other rejected tokens, and ``unclamped_fraction`` the share that is kept.

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
