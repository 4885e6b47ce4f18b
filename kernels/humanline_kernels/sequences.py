"""Losses of sequences: R(y), the derivative per token, and partial sums, for padded and packed input alike."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from humanline_kernels.log_ratio import clamp_stops, clamped_log_ratio_tile
from humanline_kernels.means import divide_to_means

NUM_PARTIALS = tl.constexpr(5)


@triton.jit
def sequence_bounds(cu_seqlens_ptr, sequence, num_sequences, N):
    """(begin, end, legal) of a sequence among N tokens. Legal bounds go from 0 to N and do not fall; others are cut."""
    begin = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    end = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)
    legal = (begin <= end) & (begin >= 0) & (end <= N)
    legal = legal & ((sequence > 0) | (begin == 0)) & ((sequence < num_sequences - 1) | (end == N))
    return tl.maximum(begin, 0), tl.minimum(end, N), legal


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
    """∂loss/∂logp of the tokens [begin, end), given ∂loss/∂R(y): that slope, or 0 where the clamp stops it."""
    for start in range(begin, end, BLOCK_T):
        n = start + tl.arange(0, BLOCK_T)
        counts, raw, _ = clamped_log_ratio_tile(
            logp_ptr, ref_logp_ptr, loss_mask_ptr, n, n < end, log_epsilon_P, log_epsilon_R
        )
        coefficient = tl.where(clamp_stops(raw, log_epsilon_P, log_epsilon_R), 0.0, slope)
        tl.store(coefficient_ptr + n, tl.where(counts, coefficient, 0.0), mask=n < end)


@triton.jit
def store_sequence_partials(partials_ptr, program, loss, legal, tokens, low, high):
    """The row of one program: loss, 1 if it has a token that counts, tokens, tokens clamped low and high.

    The loss is NaN for illegal bounds, for the caller to see.
    """
    row_ptr = partials_ptr + program * NUM_PARTIALS
    counts = tokens > 0
    tl.store(row_ptr, tl.where(legal, tl.where(counts, loss, 0.0), float("nan")))
    tl.store(row_ptr + 1, counts.to(tl.float32))
    tl.store(row_ptr + 2, tokens.to(tl.float32))
    tl.store(row_ptr + 3, low.to(tl.float32))
    tl.store(row_ptr + 4, high.to(tl.float32))


SequenceLoss = tuple[Tensor, Tensor, Tensor, Tensor]
"""``loss`` [], ``coefficient`` = ∂loss/∂logp, ``rewards`` [B], clamped low and high fractions [2]."""


def empty_outputs(logp: Tensor, B: int, programs: int, needs_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(coefficient, rewards, partials) for a kernel to write. Coefficients of tokens in no sequence stay 0."""
    coefficient = torch.zeros_like(logp) if needs_gradient else logp.new_empty(0)
    return coefficient, logp.new_empty(B), logp.new_empty(programs, NUM_PARTIALS.value)


def means_over_sequences(coefficient: Tensor, rewards: Tensor, partials: Tensor) -> SequenceLoss:
    """Results from the kernel's; the coefficient is divided in place."""
    loss, clamped = divide_to_means(partials, coefficient, tokens=2)
    return loss, coefficient, rewards, clamped


def fake_sequence_loss(logp: Tensor, cu_seqlens: Tensor, needs_gradient: bool) -> SequenceLoss:
    """Results without values, for a compiler."""
    coefficient = torch.empty_like(logp) if needs_gradient else logp.new_empty(0)
    return logp.new_empty(()), coefficient, logp.new_empty(cu_seqlens.shape[0] - 1), logp.new_empty(2)
