"""Device functions: the log-ratio of a tile of tokens, humanline's clamp, and where that stops the gradient."""

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
    """Where the clamp's gradient is 0: outside the closed interval (docs/math.md, equation 3).

    NaN is not stopped: a poisoned row gets a gradient of NaN, for everyone to see.
    """
    return (raw < log_epsilon_P) | (raw > log_epsilon_R)


@triton.jit
def sequence_bounds(cu_seqlens_ptr, sequence, N):
    """(begin, end, legal) of a sequence among N tokens; bounds outside them are cut off, and not legal."""
    begin = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    end = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)
    return tl.maximum(begin, 0), tl.minimum(end, N), (begin >= 0) & (end <= N)


@triton.jit
def sequence_log_ratio(
    logp_ptr, ref_logp_ptr, loss_mask_ptr, begin, end, log_epsilon_P, log_epsilon_R, BLOCK_T: tl.constexpr
):
    """R(y) = Σ_t clamped log-ratio of the tokens [begin, end); how many count, lie below, and lie above."""
    total = tl.zeros([BLOCK_T], tl.float32)
    tokens = tl.zeros([BLOCK_T], tl.int32)
    low = tl.zeros([BLOCK_T], tl.int32)
    high = tl.zeros([BLOCK_T], tl.int32)
    for start in range(begin, end, BLOCK_T):
        n = start + tl.arange(0, BLOCK_T)
        counts, raw, clamped = clamped_log_ratio_tile(
            logp_ptr, ref_logp_ptr, loss_mask_ptr, n, n < end, log_epsilon_P, log_epsilon_R
        )
        total += clamped
        tokens += counts.to(tl.int32)
        low += (raw < log_epsilon_P).to(tl.int32)
        high += (raw > log_epsilon_R).to(tl.int32)
    return tl.sum(total), tl.sum(tokens), tl.sum(low), tl.sum(high)


@triton.jit
def store_sequence_coefficient(
    coefficient_ptr,
    slope,
    logp_ptr,
    ref_logp_ptr,
    loss_mask_ptr,
    begin,
    end,
    log_epsilon_P,
    log_epsilon_R,
    BLOCK_T: tl.constexpr,
):
    """∂/∂logp of a loss whose slope in R(y) is given: the slope where the clamp lets it through, else 0."""
    for start in range(begin, end, BLOCK_T):
        n = start + tl.arange(0, BLOCK_T)
        counts, raw, _ = clamped_log_ratio_tile(
            logp_ptr, ref_logp_ptr, loss_mask_ptr, n, n < end, log_epsilon_P, log_epsilon_R
        )
        coefficient = tl.where(clamp_stops(raw, log_epsilon_P, log_epsilon_R), 0.0, slope)
        tl.store(coefficient_ptr + n, tl.where(counts, coefficient, 0.0), mask=n < end)
