"""Device functions: the log-ratio of a tile of tokens, humanline's clamp, and the gate of its gradient."""

import triton
import triton.language as tl


@triton.jit
def clamp_log_ratio(raw, log_epsilon_P, log_epsilon_R):
    """Equation 3; NaN stays NaN."""
    return tl.where(raw < log_epsilon_P, log_epsilon_P, tl.where(raw > log_epsilon_R, log_epsilon_R, raw))


@triton.jit
def clamped_log_ratio_tile(logp_ptr, ref_logp_ptr, loss_mask_ptr, offsets, inside, log_epsilon_P, log_epsilon_R):
    """(counts, raw, clamped) of the tokens at ``offsets``; 0 where a token does not count. NaN stays NaN."""
    counts = tl.load(loss_mask_ptr + offsets, mask=inside, other=0) != 0
    logp = tl.load(logp_ptr + offsets, mask=counts, other=0.0)
    ref_logp = tl.load(ref_logp_ptr + offsets, mask=counts, other=0.0)
    raw = logp - ref_logp
    return counts, raw, clamp_log_ratio(raw, log_epsilon_P, log_epsilon_R)


@triton.jit
def clamp_stops(raw, log_epsilon_P, log_epsilon_R):
    """True where the clamp's gradient is 0: outside the closed interval (docs/math.md, equation 3).

    False for NaN, so that the gradient of a token with a log-ratio of NaN is NaN too.
    """
    return (raw < log_epsilon_P) | (raw > log_epsilon_R)
