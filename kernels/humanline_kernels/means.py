"""Partial sums of a loss -> the loss and fractions of its tokens; the derivative per token, divided like the loss.

Grid: one program per tile of tokens, 1-D, and at least one. Each adds all rows of partial sums, in the same order, so
all divide by the same bits; the first stores the means.

Columns of the partial sums: the loss, its divisor (sequences, pairs or tokens that count), further numbers, the tokens
that count at column TOKENS, and behind it what becomes a fraction of these.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from humanline_kernels.tiles import MEANS_TILES

WIDTH = tl.constexpr(8)  # a power of two, no less than any loss has columns


@triton.jit
def column(sums, index: tl.constexpr):
    """One of the sums [WIDTH], for every thread."""
    return tl.sum(tl.where(tl.arange(0, WIDTH) == index, sums, 0.0))


@triton.jit(do_not_specialize=["R", "N"], do_not_specialize_on_alignment=["partials_ptr", "coefficient_ptr"])
def means_kernel(
    # inputs
    partials_ptr,  # [R, COLUMNS]
    num_items_ptr,  # [], in place of the divisor's column, or anything without HAS_NUM_ITEMS
    # outputs
    coefficient_ptr,  # [N], divided in place
    loss_ptr,  # []
    fractions_ptr,  # [COLUMNS - TOKENS - 1]
    # sizes
    R,
    N,
    # flags and blocks
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    HAS_NUM_ITEMS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    tl.static_assert(COLUMNS <= WIDTH)
    columns = tl.arange(0, WIDTH)
    totals = tl.zeros([BLOCK_R, WIDTH], tl.float32)
    for start in range(0, R, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        inside = (r[:, None] < R) & (columns[None, :] < COLUMNS)
        totals += tl.load(partials_ptr + r.to(tl.int64)[:, None] * COLUMNS + columns[None, :], mask=inside, other=0.0)
    sums = tl.sum(totals, axis=0)
    tokens = tl.maximum(column(sums, TOKENS), 1.0)
    num_items = tl.load(num_items_ptr) if HAS_NUM_ITEMS else tl.maximum(column(sums, 1), 1.0)

    tile = tl.program_id(0).to(tl.int64)
    n = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    coefficient = tl.load(coefficient_ptr + n, mask=n < N, other=0.0)
    tl.store(coefficient_ptr + n, tl.div_rn(coefficient, num_items), mask=n < N)
    if tile == 0:
        tl.store(loss_ptr, tl.div_rn(column(sums, 0), num_items))
        after = columns - TOKENS - 1
        tl.store(fractions_ptr + after, tl.div_rn(sums, tokens), mask=(after >= 0) & (columns < COLUMNS))


def divide_to_means(
    partials: Tensor, coefficient: Tensor, num_items: Tensor | None = None, *, tokens: int
) -> tuple[Tensor, Tensor]:
    """``loss`` [] and fractions [COLUMNS − tokens − 1]; ``coefficient`` is divided as the loss is.

    Args:
        partials: [R, COLUMNS], float32, contiguous: partial sums, as above.
        coefficient: of any size and shape, float32, contiguous; written over.
        num_items: divisor of the loss, [], float32; None is the sum of its column, at least 1.
        tokens: column of the tokens that count.
    """
    R, COLUMNS = partials.shape
    N = coefficient.numel()
    loss, fractions = partials.new_empty(()), partials.new_empty(COLUMNS - tokens - 1)
    with torch.cuda.device_of(partials):
        means_kernel[(max(1, triton.cdiv(N, MEANS_TILES["BLOCK_T"])),)](
            partials,
            partials if num_items is None else num_items,
            coefficient,
            loss,
            fractions,
            R,
            N,
            COLUMNS=COLUMNS,
            TOKENS=tokens,
            HAS_NUM_ITEMS=num_items is not None,
            **MEANS_TILES,
        )
    return loss, fractions
