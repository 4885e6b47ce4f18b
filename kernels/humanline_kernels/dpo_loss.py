"""Token log-probs of policy and reference -> a loss of pairs, its derivative per token, rewards and clamp counts.

Grid: one program per pair, 1-D. Each writes one row of ``partials``, which means.py adds up.
The losses differ in the link alone: the loss of one pair as a function of its margin.
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

LINKS = {
    "sigmoid": {"LINK": "sigmoid", "PER_TOKEN": False},
    "ipo": {"LINK": "squared", "PER_TOKEN": True},
    "hinge": {"LINK": "hinge", "PER_TOKEN": False},
    "sigmoid_norm": {"LINK": "sigmoid", "PER_TOKEN": True},
}
"""By ``loss_type``: the link, and whether a sequence's log-ratio is divided by its number of tokens that count."""


@triton.jit
def softplus(x):
    """log(1 + exp(x)), accurate for large negative x too, where 1 + exp(x) rounds to 1."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    return tl.maximum(x, 0.0) + tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def sigmoid_link(margin, label_smoothing):
    """(loss, slope in the margin): equations 4 and 5."""
    loss = (1 - label_smoothing) * softplus(-margin)
    if label_smoothing != 0:
        loss += label_smoothing * softplus(margin)
    return loss, label_smoothing * tl.sigmoid(margin) - (1 - label_smoothing) * tl.sigmoid(-margin)


@triton.jit
def squared_link(margin, beta):
    """(loss, slope in the margin): equation 5b."""
    error = (margin - 0.5) / beta
    return error * error, 2 * error / beta


@triton.jit
def hinge_link(margin):
    """(loss, slope in the margin): equation 5c. At the kink the slope is 0, as torch.relu's; NaN stays NaN."""
    missing = 1 - margin
    reached = missing <= 0
    return tl.where(reached, 0.0, missing), tl.where(reached, 0.0, -1.0)


@triton.jit
def loss_of_pair(margin, beta, label_smoothing, LINK: tl.constexpr):
    """(loss, slope in the margin) of one pair."""
    if LINK == "squared":
        loss, slope = squared_link(margin, beta)
    elif LINK == "hinge":
        loss, slope = hinge_link(margin)
    else:
        tl.static_assert(LINK == "sigmoid", "expected the link 'sigmoid', 'squared' or 'hinge'")
        loss, slope = sigmoid_link(margin, label_smoothing)
    return loss, slope


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
    partials_ptr,  # [P, NUM_PARTIALS]
    # sizes
    P,
    N,  # tokens
    # scalars
    beta,
    label_smoothing,
    log_epsilon_P,
    log_epsilon_R,
    # flags and blocks
    LINK: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    NEEDS_GRADIENT: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    chosen = tl.program_id(0).to(tl.int64)
    rejected = P + chosen
    chosen_begin, chosen_end, chosen_legal = sequence_bounds(cu_seqlens_ptr, chosen, 2 * P, N)
    rejected_begin, rejected_end, rejected_legal = sequence_bounds(cu_seqlens_ptr, rejected, 2 * P, N)
    chosen_log_ratio, chosen_tokens, chosen_low, chosen_high = sequence_log_ratio(
        logp_ptr, ref_logp_ptr, loss_mask_ptr, chosen_begin, chosen_end, log_epsilon_P, log_epsilon_R, BLOCK_T
    )
    rejected_log_ratio, rejected_tokens, rejected_low, rejected_high = sequence_log_ratio(
        logp_ptr, ref_logp_ptr, loss_mask_ptr, rejected_begin, rejected_end, log_epsilon_P, log_epsilon_R, BLOCK_T
    )
    tl.store(rewards_ptr + chosen, beta * chosen_log_ratio)
    tl.store(rewards_ptr + rejected, beta * rejected_log_ratio)

    if PER_TOKEN:
        chosen_log_ratio /= tl.maximum(chosen_tokens, 1)
        rejected_log_ratio /= tl.maximum(rejected_tokens, 1)
    margin = beta * (chosen_log_ratio - rejected_log_ratio)
    loss, slope = loss_of_pair(margin, beta, label_smoothing, LINK)
    chosen_slope = beta * slope
    rejected_slope = -chosen_slope
    if PER_TOKEN:
        chosen_slope /= tl.maximum(chosen_tokens, 1)
        rejected_slope /= tl.maximum(rejected_tokens, 1)

    store_sequence_partials(
        partials_ptr,
        chosen,
        loss,
        chosen_legal & rejected_legal,
        chosen_tokens + rejected_tokens,
        chosen_low + rejected_low,
        chosen_high + rejected_high,
    )
    if NEEDS_GRADIENT:
        store_sequence_coefficient(
            coefficient_ptr,
            chosen_slope,
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
            rejected_slope,
            logp_ptr,
            ref_logp_ptr,
            loss_mask_ptr,
            rejected_begin,
            rejected_end,
            log_epsilon_P,
            log_epsilon_R,
            BLOCK_T,
        )


@operator("dpo_loss")
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
    loss_type: str = "sigmoid",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``loss`` [], ``coefficient`` = ∂loss/∂logp, ``rewards`` [2P], clamped low and high fractions [2].

    Args:
        logp, ref_logp: N log-probs of any shape, float32, contiguous, nats.
        loss_mask: the same shape, bool, contiguous.
        cu_seqlens: [2P + 1], integer: sequence b is the tokens from cu_seqlens[b] to cu_seqlens[b + 1]; chosen first.
        label_smoothing: of the sigmoid link alone.
        needs_gradient: without it ``coefficient`` is [0].
        loss_type: a key of ``LINKS``.
    """
    P = (cu_seqlens.shape[0] - 1) // 2
    coefficient, rewards, partials = empty_outputs(logp, 2 * P, P, needs_gradient)
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
                **LINKS[loss_type],
                **TOKEN_TILES,
            )
    return means_over_sequences(coefficient, rewards, partials)


@dpo_loss_forward.register_fake
def _(logp, ref_logp, loss_mask, cu_seqlens, beta, smoothing, low, high, needs_gradient, loss_type="sigmoid"):
    return fake_sequence_loss(logp, cu_seqlens, needs_gradient)
