"""Token log-probs of policy and reference -> KTO's loss, its derivative per token, rewards and clamp counts.

Grid: one program per sequence, 1-D. Each writes one row of ``partials``; one sum over the rows, in a fixed order,
ends it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from humanline_kernels.launch import TOKEN_TILES
from humanline_kernels.log_ratio import sequence_bounds, sequence_log_ratio, store_sequence_coefficient


@triton.jit(do_not_specialize=["N"])
def kto_loss_kernel(
    # inputs
    logp_ptr,  # [N]
    ref_logp_ptr,  # [N]
    loss_mask_ptr,  # [N]
    cu_seqlens_ptr,  # [B + 1]
    desirable_ptr,  # [B]
    kl_ptr,  # []
    # outputs
    coefficient_ptr,  # [N], or anything without NEEDS_GRADIENT
    rewards_ptr,  # [B]
    partials_ptr,  # [B, 5]: loss, sequences, tokens, low, high
    # sizes
    N,  # tokens
    # scalars
    beta,
    desirable_weight,
    undesirable_weight,
    log_epsilon_P,
    log_epsilon_R,
    # flags and blocks
    NEEDS_GRADIENT: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    begin, end, legal = sequence_bounds(cu_seqlens_ptr, b, N)
    log_ratio, tokens, low, high = sequence_log_ratio(
        logp_ptr, ref_logp_ptr, loss_mask_ptr, begin, end, log_epsilon_P, log_epsilon_R, BLOCK_T
    )
    counts = tokens > 0

    # Equations 6 and 7: the same sigmoid, turned round where the sequence is undesirable.
    desirable = tl.load(desirable_ptr + b) != 0
    direction = tl.where(desirable, 1.0, -1.0)
    weight = tl.where(desirable, desirable_weight, undesirable_weight)
    rewards = beta * log_ratio
    margin = direction * (rewards - beta * tl.load(kl_ptr))
    loss = weight * tl.sigmoid(-margin)
    slope = -weight * direction * beta * tl.sigmoid(margin) * tl.sigmoid(-margin)

    tl.store(rewards_ptr + b, rewards)
    row_ptr = partials_ptr + b * 5
    tl.store(row_ptr, tl.where(legal, tl.where(counts, loss, 0.0), float("nan")))
    tl.store(row_ptr + 1, counts.to(tl.float32))
    tl.store(row_ptr + 2, tokens.to(tl.float32))
    tl.store(row_ptr + 3, low.to(tl.float32))
    tl.store(row_ptr + 4, high.to(tl.float32))
    if NEEDS_GRADIENT:
        store_sequence_coefficient(
            coefficient_ptr,
            slope,
            logp_ptr,
            ref_logp_ptr,
            loss_mask_ptr,
            begin,
            end,
            log_epsilon_P,
            log_epsilon_R,
            BLOCK_T,
        )


@torch.library.custom_op("humanline::kto_loss", mutates_args=())
def kto_loss_forward(
    logp: Tensor,
    ref_logp: Tensor,
    loss_mask: Tensor,
    cu_seqlens: Tensor,
    desirable: Tensor,
    kl: Tensor,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    log_epsilon_P: float,
    log_epsilon_R: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``loss`` [], ``coefficient`` = ∂loss/∂logp, ``rewards`` [B], clamped low and high fractions [].

    Args:
        logp, ref_logp: N log-probs of any shape, float32, contiguous, nats.
        loss_mask: the same shape, bool, contiguous.
        cu_seqlens: [B + 1], integer: sequence b is the tokens from cu_seqlens[b] to cu_seqlens[b + 1].
        desirable: [B], bool, contiguous.
        kl: z0, [], float32, nats.
        needs_gradient: without it ``coefficient`` is [0].
    """
    B = cu_seqlens.shape[0] - 1
    coefficient = torch.zeros_like(logp) if needs_gradient else logp.new_empty(0)
    rewards = logp.new_empty(B)
    partials = logp.new_empty(B, 5)
    if B:
        with torch.cuda.device_of(logp):
            kto_loss_kernel[(B,)](
                logp,
                ref_logp,
                loss_mask,
                cu_seqlens,
                desirable,
                kl,
                coefficient,
                rewards,
                partials,
                logp.numel(),
                beta,
                desirable_weight,
                undesirable_weight,
                log_epsilon_P,
                log_epsilon_R,
                NEEDS_GRADIENT=needs_gradient,
                **TOKEN_TILES,
            )
    loss, num_sequences, num_tokens, low, high = partials.sum(0).unbind()
    num_sequences, num_tokens = num_sequences.clamp(min=1), num_tokens.clamp(min=1)
    return loss / num_sequences, coefficient.div_(num_sequences), rewards, low / num_tokens, high / num_tokens


@kto_loss_forward.register_fake
def _(logp, ref_logp, loss_mask, cu_seqlens, desirable, kl, *scalars):
    scalar = logp.new_empty(())
    coefficient = torch.empty_like(logp) if scalars[-1] else logp.new_empty(0)
    rewards = logp.new_empty(cu_seqlens.shape[0] - 1)
    return scalar, coefficient, rewards, torch.empty_like(scalar), torch.empty_like(scalar)
