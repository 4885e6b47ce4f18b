"""Token log-probs of policy and reference -> KTO's loss, its derivative per token, rewards and clamp counts.

Grid: one program per sequence, 1-D. Each writes one row of ``partials``, which means.py adds up.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from humanline_kernels.operators import operator
from humanline_kernels.sequences import (
    empty_outputs,
    fake_sequence_loss,
    means_over_sequences,
    sequence_bounds,
    sequence_log_ratio,
    store_sequence_coefficient,
    store_sequence_partials,
)
from humanline_kernels.tiles import TOKEN_TILES


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
    partials_ptr,  # [B, NUM_PARTIALS]
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
    begin, end, legal = sequence_bounds(cu_seqlens_ptr, b, tl.num_programs(0), N)
    log_ratio, tokens, low, high = sequence_log_ratio(
        logp_ptr, ref_logp_ptr, loss_mask_ptr, begin, end, log_epsilon_P, log_epsilon_R, BLOCK_T
    )

    # Equations 6 and 7: one sigmoid, mirrored for an undesirable sequence.
    desirable = tl.load(desirable_ptr + b) != 0
    direction = tl.where(desirable, 1.0, -1.0)
    weight = tl.where(desirable, desirable_weight, undesirable_weight)
    rewards = beta * log_ratio
    margin = direction * (rewards - beta * tl.load(kl_ptr))
    loss = weight * tl.sigmoid(-margin)
    slope = -weight * direction * beta * tl.sigmoid(margin) * tl.sigmoid(-margin)

    tl.store(rewards_ptr + b, rewards)
    store_sequence_partials(partials_ptr, b, loss, legal, tokens, low, high)
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


@operator("kto_loss")
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``loss`` [], ``coefficient`` = ∂loss/∂logp, ``rewards`` [B], clamped low and high fractions [2].

    Args:
        logp, ref_logp: N log-probs of any shape, float32, contiguous, nats.
        loss_mask: the same shape, bool, contiguous.
        cu_seqlens: [B + 1], integer: sequence b is the tokens from cu_seqlens[b] to cu_seqlens[b + 1].
        desirable: [B], bool, contiguous.
        kl: z0, [], float32, nats.
        needs_gradient: without it ``coefficient`` is [0].
    """
    B = cu_seqlens.shape[0] - 1
    coefficient, rewards, partials = empty_outputs(logp, B, B, needs_gradient)
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
    return means_over_sequences(coefficient, rewards, partials)


@kto_loss_forward.register_fake
def _(logp, ref_logp, loss_mask, cu_seqlens, desirable, kl, *scalars):
    return fake_sequence_loss(logp, cu_seqlens, scalars[-1])
