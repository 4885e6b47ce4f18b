"""Token log-probs of policy and reference -> KTO's loss, its derivative per token, rewards and clamp counts.

Grid: one program per sequence, 1-D. Each writes one row of ``partials``; one sum over the rows, in a fixed order,
ends it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from humanline_kernels.launch import TOKEN_TILES
from humanline_kernels.log_ratio import sequence_log_ratio, store_sequence_coefficient


@triton.jit(do_not_specialize=["T"])
def kto_loss_kernel(
    # inputs
    logp_ptr,  # [B, T]
    ref_logp_ptr,  # [B, T]
    loss_mask_ptr,  # [B, T]
    desirable_ptr,  # [B]
    kl_ptr,  # []
    # outputs
    coefficient_ptr,  # [B, T]
    rewards_ptr,  # [B]
    partials_ptr,  # [B, 5]: loss, sequences, tokens, low, high
    # sizes
    T,
    # scalars
    beta,
    desirable_weight,
    undesirable_weight,
    log_epsilon_P,
    log_epsilon_R,
    # blocks
    BLOCK_T: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    log_ratio, tokens, low, high = sequence_log_ratio(
        logp_ptr, ref_logp_ptr, loss_mask_ptr, b, T, log_epsilon_P, log_epsilon_R, BLOCK_T
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
    tl.store(row_ptr, tl.where(counts, loss, 0.0))
    tl.store(row_ptr + 1, counts.to(tl.float32))
    tl.store(row_ptr + 2, tokens.to(tl.float32))
    tl.store(row_ptr + 3, low.to(tl.float32))
    tl.store(row_ptr + 4, high.to(tl.float32))
    store_sequence_coefficient(
        coefficient_ptr, slope, logp_ptr, ref_logp_ptr, loss_mask_ptr, b, T, log_epsilon_P, log_epsilon_R, BLOCK_T
    )


def kto_loss_forward(
    logp: Tensor,
    ref_logp: Tensor,
    loss_mask: Tensor,
    desirable: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    log_epsilon_P: float,
    log_epsilon_R: float,
) -> tuple[Tensor, ...]:
    """``loss`` [], ``coefficient`` = ∂loss/∂logp [B, T], ``rewards`` [B], clamped low and high fractions [].

    Args:
        logp, ref_logp: [B, T], float32, contiguous, nats.
        loss_mask: [B, T], bool, contiguous.
        desirable: [B], bool, contiguous.
        kl: z0, [], float32, nats.
    """
    B, T = logp.shape
    coefficient = torch.empty_like(logp)
    rewards = logp.new_empty(B)
    partials = logp.new_empty(B, 5)
    if B:
        with torch.cuda.device_of(logp):
            kto_loss_kernel[(B,)](
                logp,
                ref_logp,
                loss_mask,
                desirable,
                kl,
                coefficient,
                rewards,
                partials,
                T,
                beta,
                desirable_weight,
                undesirable_weight,
                log_epsilon_P,
                log_epsilon_R,
                **TOKEN_TILES,
            )
    loss, num_sequences, num_tokens, low, high = partials.sum(0).unbind()
    num_sequences, num_tokens = num_sequences.clamp(min=1), num_tokens.clamp(min=1)
    return loss / num_sequences, coefficient.div_(num_sequences), rewards, low / num_tokens, high / num_tokens
