"""Token log-probs of policy and reference -> DPO's loss, its derivative per token, rewards and clamp counts.

Grid: one program per pair, 1-D. Each writes one row of ``partials``; one sum over the rows, in a fixed order, ends it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from humanline_kernels.launch import TOKEN_TILES
from humanline_kernels.log_ratio import sequence_bounds, sequence_log_ratio, store_sequence_coefficient


@triton.jit
def softplus(x):
    """log(1 + exp(x)), accurate for large negative x too, where 1 + exp(x) rounds to 1."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    return tl.maximum(x, 0.0) + tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit(do_not_specialize=["P", "N"])
def dpo_loss_kernel(
    # inputs
    logp_ptr,  # [N]
    ref_logp_ptr,  # [N]
    loss_mask_ptr,  # [N]
    cu_seqlens_ptr,  # [2P + 1]
    # outputs
    coefficient_ptr,  # [N], or anything without NEEDS_GRADIENT
    rewards_ptr,  # [2P]
    partials_ptr,  # [P, 5]: loss, pairs, tokens, low, high
    # sizes
    P,
    N,  # tokens
    # scalars
    beta,
    label_smoothing,
    log_epsilon_P,
    log_epsilon_R,
    # flags and blocks
    NEEDS_GRADIENT: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    chosen = tl.program_id(0).to(tl.int64)
    rejected = P + chosen
    chosen_begin, chosen_end, chosen_legal = sequence_bounds(cu_seqlens_ptr, chosen, N)
    rejected_begin, rejected_end, rejected_legal = sequence_bounds(cu_seqlens_ptr, rejected, N)
    chosen_log_ratio, chosen_tokens, chosen_low, chosen_high = sequence_log_ratio(
        logp_ptr, ref_logp_ptr, loss_mask_ptr, chosen_begin, chosen_end, log_epsilon_P, log_epsilon_R, BLOCK_T
    )
    rejected_log_ratio, rejected_tokens, rejected_low, rejected_high = sequence_log_ratio(
        logp_ptr, ref_logp_ptr, loss_mask_ptr, rejected_begin, rejected_end, log_epsilon_P, log_epsilon_R, BLOCK_T
    )
    tokens = chosen_tokens + rejected_tokens
    counts = tokens > 0

    # Equation 4 and its slope in the margin, equation 5.
    margin = beta * (chosen_log_ratio - rejected_log_ratio)
    loss = (1 - label_smoothing) * softplus(-margin)
    if label_smoothing != 0:
        loss += label_smoothing * softplus(margin)
    slope = beta * (label_smoothing * tl.sigmoid(margin) - (1 - label_smoothing) * tl.sigmoid(-margin))

    tl.store(rewards_ptr + chosen, beta * chosen_log_ratio)
    tl.store(rewards_ptr + rejected, beta * rejected_log_ratio)
    row_ptr = partials_ptr + chosen * 5
    legal = chosen_legal & rejected_legal
    tl.store(row_ptr, tl.where(legal, tl.where(counts, loss, 0.0), float("nan")))
    tl.store(row_ptr + 1, counts.to(tl.float32))
    tl.store(row_ptr + 2, tokens.to(tl.float32))
    tl.store(row_ptr + 3, (chosen_low + rejected_low).to(tl.float32))
    tl.store(row_ptr + 4, (chosen_high + rejected_high).to(tl.float32))
    if NEEDS_GRADIENT:
        store_sequence_coefficient(
            coefficient_ptr,
            slope,
            logp_ptr,
            ref_logp_ptr,
            loss_mask_ptr,
            chosen_begin,
            chosen_end,
            log_epsilon_P,
            log_epsilon_R,
            BLOCK_T,
        )
        store_sequence_coefficient(
            coefficient_ptr,
            -slope,
            logp_ptr,
            ref_logp_ptr,
            loss_mask_ptr,
            rejected_begin,
            rejected_end,
            log_epsilon_P,
            log_epsilon_R,
            BLOCK_T,
        )


@torch.library.custom_op("humanline::dpo_loss", mutates_args=())
def dpo_loss_forward(
    logp: Tensor,
    ref_logp: Tensor,
    loss_mask: Tensor,
    cu_seqlens: Tensor,
    beta: float,
    label_smoothing: float,
    log_epsilon_P: float,
    log_epsilon_R: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``loss`` [], ``coefficient`` = ∂loss/∂logp, ``rewards`` [2P], clamped low and high fractions [].

    Args:
        logp, ref_logp: N log-probs of any shape, float32, contiguous, nats.
        loss_mask: the same shape, bool, contiguous.
        cu_seqlens: [2P + 1], integer: sequence b is the tokens from cu_seqlens[b] to cu_seqlens[b + 1]; chosen first.
        needs_gradient: without it ``coefficient`` is [0].
    """
    P = (cu_seqlens.shape[0] - 1) // 2
    coefficient = torch.zeros_like(logp) if needs_gradient else logp.new_empty(0)
    rewards = logp.new_empty(2 * P)
    partials = logp.new_empty(P, 5)
    if P:
        with torch.cuda.device_of(logp):
            dpo_loss_kernel[(P,)](
                logp,
                ref_logp,
                loss_mask,
                cu_seqlens,
                coefficient,
                rewards,
                partials,
                P,
                logp.numel(),
                beta,
                label_smoothing,
                log_epsilon_P,
                log_epsilon_R,
                NEEDS_GRADIENT=needs_gradient,
                **TOKEN_TILES,
            )
    loss, num_pairs, num_tokens, low, high = partials.sum(0).unbind()
    num_pairs, num_tokens = num_pairs.clamp(min=1), num_tokens.clamp(min=1)
    return loss / num_pairs, coefficient.div_(num_pairs), rewards, low / num_tokens, high / num_tokens


@dpo_loss_forward.register_fake
def _(logp, ref_logp, loss_mask, cu_seqlens, beta, label_smoothing, log_epsilon_P, log_epsilon_R, needs_gradient):
    scalar = logp.new_empty(())
    coefficient = torch.empty_like(logp) if needs_gradient else logp.new_empty(0)
    rewards = logp.new_empty(cu_seqlens.shape[0] - 1)
    return scalar, coefficient, rewards, torch.empty_like(scalar), torch.empty_like(scalar)
