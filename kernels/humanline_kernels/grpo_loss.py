"""Token log-probs of policy and reference -> GRPO's loss, its derivative per token, KL, and clip and clamp counts.

Grid: one program per tile of tokens, 1-D. Each writes one row of ``partials``, which means.py adds up.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from humanline_kernels.log_ratio import clamp_stops, clamped_log_ratio_tile
from humanline_kernels.means import divide_to_means
from humanline_kernels.operators import operator
from humanline_kernels.tiles import TOKEN_TILES

LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def k3_and_slope(log_ratio):
    """Equation 10: e^x − 1 − x with x = −log_ratio, and its derivative in the log-ratio.

    Where |x| < 1 it is x²/2 (1 + x/3 (1 + x/4 (1 + …))), because the three terms cancel near 0.
    """
    x = -log_ratio
    near = tl.abs(x) < 1
    y = tl.where(near, x, 0.0)
    series = tl.fma(y, 1 / 11, 1.0)
    for i in tl.static_range(8):  # 1/10 to 1/3; the next term is below half an epsilon
        series = tl.fma(series, y * (1 / (10 - i)), 1.0)
    series *= 0.5 * y * y
    expm1 = tl.exp(x) - 1
    # The largest number in place of ∞: k3 of a log-ratio of −∞ is ∞, not ∞ − ∞.
    k3 = tl.where(near, series, expm1 - tl.where(x > LARGEST, LARGEST, x))
    return k3, -tl.where(near, series + y, expm1)


@triton.jit
def grpo_terms(raw, clamped, advantages, epsilon, epsilon_high, beta, log_epsilon_P, log_epsilon_R):
    """(loss, ∂loss/∂logp, k3, clipped low, clipped high) of tokens, given their raw and clamped log-ratio."""
    # Equation 9. Where the clipped term is the smaller one, the ratio enters neither the value nor the gradient: beyond
    # 88 nats it is infinite in float32, and 0 · ∞ would be NaN.
    ratio = tl.exp(clamped)
    too_low, too_high = ratio < 1 - epsilon, ratio > 1 + epsilon_high
    clip_low, clip_high = (advantages < 0) & too_low, (advantages > 0) & too_high
    stopped = clip_low | ((advantages >= 0) & too_high)
    loss = -advantages * tl.where(stopped, tl.where(too_low, 1 - epsilon, 1 + epsilon_high), ratio)
    stopped |= clamp_stops(raw, log_epsilon_P, log_epsilon_R)
    coefficient = tl.where(stopped, 0.0, -advantages * ratio)

    # Equations 10 and 11: k3 is taken on the raw log-ratio, so the clamp does not stop its gradient.
    k3, slope = k3_and_slope(raw)
    if beta != 0:
        loss += beta * k3
        coefficient += beta * slope
    return loss, coefficient, k3, clip_low, clip_high


@triton.jit
def store_partials(row_ptr, loss, tokens, k3, clip_low, clip_high, low, high):
    """One row of partial sums (in one launch: of one token); counts as floats."""
    tl.store(row_ptr, loss)
    tl.store(row_ptr + 1, tokens.to(tl.float32))
    tl.store(row_ptr + 2, k3)
    tl.store(row_ptr + 3, clip_low.to(tl.float32))
    tl.store(row_ptr + 4, clip_high.to(tl.float32))
    tl.store(row_ptr + 5, low.to(tl.float32))
    tl.store(row_ptr + 6, high.to(tl.float32))


# Alignment is unknown to the compiler, so that a lane holds one token. It would hold eight neighbours and load them one
# by one, because no mask of tokens is the same for eight.
@triton.jit(
    do_not_specialize=["N", "T", "stride_advantages_b", "stride_advantages_t"],
    do_not_specialize_on_alignment=["logp_ptr", "ref_logp_ptr", "loss_mask_ptr", "coefficient_ptr"],
)
def grpo_loss_kernel(
    # inputs
    logp_ptr,  # [B, T]
    ref_logp_ptr,  # [B, T]
    loss_mask_ptr,  # [B, T]
    advantages_ptr,  # [B, T], any strides
    # outputs
    coefficient_ptr,  # [B, T], or anything without NEEDS_GRADIENT
    partials_ptr,  # [tiles, 7]
    # sizes
    N,  # B · T
    T,
    # strides
    stride_advantages_b: tl.int64,
    stride_advantages_t: tl.int64,
    # scalars
    epsilon,
    epsilon_high,
    beta,
    log_epsilon_P,
    log_epsilon_R,
    # flags and blocks
    NEEDS_GRADIENT: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    tile = tl.program_id(0).to(tl.int64)
    n = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    counts, raw, clamped = clamped_log_ratio_tile(
        logp_ptr, ref_logp_ptr, loss_mask_ptr, n, n < N, log_epsilon_P, log_epsilon_R
    )
    b, t = n // T, n % T
    advantages = tl.load(advantages_ptr + b * stride_advantages_b + t * stride_advantages_t, mask=counts, other=0.0)
    loss, coefficient, k3, clip_low, clip_high = grpo_terms(
        raw, clamped, advantages, epsilon, epsilon_high, beta, log_epsilon_P, log_epsilon_R
    )
    if NEEDS_GRADIENT:
        tl.store(coefficient_ptr + n, tl.where(counts, coefficient, 0.0), mask=n < N)
    store_partials(
        partials_ptr + tile * 7,
        tl.sum(tl.where(counts, loss, 0.0)),
        tl.sum(counts.to(tl.int32)),
        tl.sum(tl.where(counts, k3, 0.0)),
        tl.sum((counts & clip_low).to(tl.int32)),
        tl.sum((counts & clip_high).to(tl.int32)),
        tl.sum((raw < log_epsilon_P).to(tl.int32)),
        tl.sum((raw > log_epsilon_R).to(tl.int32)),
    )


@operator("grpo_loss")
def grpo_loss_forward(
    logp: Tensor,
    ref_logp: Tensor,
    loss_mask: Tensor,
    advantages: Tensor,
    num_items_in_batch: Tensor | None,
    epsilon: float,
    epsilon_high: float,
    beta: float,
    log_epsilon_P: float,
    log_epsilon_R: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``loss`` [], ``coefficient`` = ∂loss/∂logp [B, T], metrics [5].

    The metrics are kl and the fractions of tokens that are clipped low and high, and clamped low and high.

    Args:
        logp, ref_logp: [B, T], float32, contiguous, nats.
        loss_mask: [B, T], bool, contiguous.
        advantages: [B, T], float32, any strides.
        num_items_in_batch: [], > 0, or None for the tokens that count here.
        needs_gradient: without it ``coefficient`` is [0].
    """
    B, T = logp.shape
    num_tiles = triton.cdiv(B * T, TOKEN_TILES["BLOCK_T"])
    coefficient = torch.empty_like(logp) if needs_gradient else logp.new_empty(0)
    partials = logp.new_empty(num_tiles, 7)
    if num_tiles:
        with torch.cuda.device_of(logp):
            grpo_loss_kernel[(num_tiles,)](
                logp,
                ref_logp,
                loss_mask,
                advantages,
                coefficient,
                partials,
                B * T,
                T,
                *advantages.stride(),
                epsilon,
                epsilon_high,
                beta,
                log_epsilon_P,
                log_epsilon_R,
                NEEDS_GRADIENT=needs_gradient,
                **TOKEN_TILES,
            )
    loss, metrics = divide_to_means(partials, coefficient, num_items_in_batch, tokens=1)
    return loss, coefficient, metrics


@grpo_loss_forward.register_fake
def _(logp, *arguments):
    return logp.new_empty(()), torch.empty_like(logp) if arguments[-1] else logp.new_empty(0), logp.new_empty(5)
