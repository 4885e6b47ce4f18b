"""Each token's log-ratio and humanline's clamp (docs/math.md, equations 2 and 3)."""

from typing import NamedTuple

from torch import Tensor


class ClampedLogRatio(NamedTuple):
    clamped: Tensor
    """[B, T], nats, 0 where the mask is False; its gradient is 1 on the closed interval and at NaN, 0 outside."""
    raw: Tensor
    """The same before the clamp."""
    low: Tensor
    """Number of tokens below the lower bound, []."""
    high: Tensor
    """Number of tokens above the upper bound, []."""


def clamped_log_ratio(
    logp: Tensor, ref_logp: Tensor, loss_mask: Tensor, log_epsilon_P: float, log_epsilon_R: float
) -> ClampedLogRatio:
    raw = (logp - ref_logp.detach()).where(loss_mask, 0.0)
    below, above = raw < log_epsilon_P, raw > log_epsilon_R
    # Tensor.clamp's gradient on a bound and at NaN depends on torch's version; this one is equation 3's.
    clamped = raw.where(~below, log_epsilon_P).where(~above, log_epsilon_R)
    return ClampedLogRatio(clamped, raw, below.sum(), above.sum())
