"""Device functions: fold a row of logits into (row_max, log_sumexp), so that ``lse = row_max + log_sumexp``.

The two are kept apart because a row's offset costs precision only where they meet (docs/numerics.md). ``row_max`` is
a point of reference within reach of the row's maximum, not necessarily the maximum itself.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def load_tile(row_ptr, start, V, stride_v, BLOCK_V: tl.constexpr):
    """``BLOCK_V`` logits from ``start`` on, −inf beyond the row's end."""
    columns = start + tl.arange(0, BLOCK_V)
    return tl.load(row_ptr + columns.to(tl.int64) * stride_v, mask=columns < V, other=-float("inf")).to(tl.float32)


@triton.jit
def load_whole_tile(row_ptr, start, stride_v, BLOCK_V: tl.constexpr):
    """``BLOCK_V`` logits from ``start`` on, all of them in the row: no masks in the loops over these."""
    columns = start + tl.arange(0, BLOCK_V)
    return tl.load(row_ptr + columns.to(tl.int64) * stride_v).to(tl.float32)


@triton.jit
def fold_optimistic(row_ptr, row_max, V, stride_v, BLOCK_V: tl.constexpr):
    """Σ exp(x − row_max) around a point known beforehand: no maximum in the loop, one fma and one exp2 per element.

    Overflows to +inf only where a logit exceeds ``row_max`` by more than 76 nats.
    """
    shift = -row_max * LOG2E
    whole = V // BLOCK_V * BLOCK_V
    sumexp = tl.zeros([BLOCK_V], tl.float32)
    for start in range(0, whole, BLOCK_V):
        sumexp += tl.exp2(tl.fma(load_whole_tile(row_ptr, start, stride_v, BLOCK_V), LOG2E, shift))
    if whole < V:
        sumexp += tl.exp2(tl.fma(load_tile(row_ptr, whole, V, stride_v, BLOCK_V), LOG2E, shift))
    # shift was rounded once, the same way for every element: this is that rounding, exactly.
    residual = tl.fma(row_max, LOG2E, shift)
    return tl.sum(sumexp), residual


@triton.jit
def fold_safe(row_ptr, V, stride_v, BLOCK_V: tl.constexpr):
    """The row's maximum and Σ exp(x − maximum), whatever the row holds. A finite start lets −inf logits count as 0."""
    lane_max = tl.full([BLOCK_V], LOWEST, tl.float32)
    lane_sumexp = tl.zeros([BLOCK_V], tl.float32)
    for start in range(0, V, BLOCK_V):
        x = load_tile(row_ptr, start, V, stride_v, BLOCK_V)
        new_max = tl.maximum(lane_max, x)
        lane_sumexp = lane_sumexp * tl.exp2((lane_max - new_max) * LOG2E) + tl.exp2((x - new_max) * LOG2E)
        lane_max = new_max
    row_max = tl.max(lane_max)
    return row_max, tl.sum(lane_sumexp * tl.exp2((lane_max - row_max) * LOG2E))


@triton.jit
def log_sumexp_of_row(row_ptr, target_logit, V, stride_v, BLOCK_V: tl.constexpr):
    """(row_max, log_sumexp) of one row. NaN or +inf anywhere in it makes log_sumexp NaN."""
    row_max = tl.maximum(tl.max(load_tile(row_ptr, 0, V, stride_v, BLOCK_V)), target_logit)
    row_sumexp, residual = fold_optimistic(row_ptr, row_max, V, stride_v, BLOCK_V)
    # False for NaN too: after a spike, NaN, +inf, or −inf in first tile and target, the safe loop reads the row again.
    if not (row_sumexp < 3e38):
        row_max, row_sumexp = fold_safe(row_ptr, V, stride_v, BLOCK_V)
        residual = 0.0
    return row_max, (tl.log2(row_sumexp) - residual) * LN2
