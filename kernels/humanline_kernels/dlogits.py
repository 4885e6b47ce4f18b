"""dlogits: its layout in memory, and the device functions that write a row of it (symbols: softmax.py)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from humanline_kernels.softmax import (
    LN2,
    NEGLIGIBLE,
    aligned,
    edge_columns,
    last_tile,
    load_target,
    row_parts,
    score,
)
from humanline_kernels.tiles import vocabulary_tiles


def empty_dlogits(logits: Tensor, address: int) -> Tensor:
    """An empty tensor like ``logits``; each row begins as many bytes after a 16-byte boundary as its row of logits.

    So head and body are the same for both. For contiguous logits it is contiguous; otherwise each row, and each
    sequence, is up to 15 bytes longer.

    Args:
        address: of the first logit, bytes; any number where a compiler traces without memory.
    """
    B, T, V = logits.shape
    stride_b, stride_t, _ = logits.stride()
    vector = 16 // logits.element_size()
    row = V + (stride_t - V) % vector
    sequence = T * row + (stride_b - T * row) % vector
    phase = address % 16 // logits.element_size()
    return logits.new_empty(phase + B * sequence).as_strided((B, T, V), (sequence, row, 1), phase)


@triton.jit
def dlogits_tile(x, row, softmax, IS_TARGET: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_ENTROPY: tl.constexpr):
    """Equations 13 to 15 at logits x of the row (center, log2_total, entropy, dlogp, dentropy)."""
    center, log2_total, entropy, dlogp, dentropy = row
    sharpness, _ = softmax
    s = score(x, softmax, HAS_SOFTCAP)
    log2_p = tl.fma(s - center, sharpness, -log2_total)
    slope = -dlogp
    if HAS_ENTROPY:
        slope = tl.fma(tl.maximum(log2_p, NEGLIGIBLE), -dentropy * LN2, -(dlogp + dentropy * entropy))
    dx = tl.exp2(log2_p) * slope
    if IS_TARGET:
        dx += dlogp
    if HAS_SOFTCAP:
        dx *= tl.fma(-s, s, 1.0)
    return dx


@triton.jit
def store_dlogits(
    row_ptr,
    drow_ptr,
    target_id,
    V,
    row,
    softmax,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BACKWARDS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    EVICTION: tl.constexpr,
):
    """One row of dlogits, with the head and body of the row of logits; it may be that row itself.

    ``row`` is (point, log2_total, entropy, dlogp, dentropy). The last two include the factor scale / temperature of
    equation 15.

    The loop writes every element as if it were not the target, without a comparison per element. One scalar store at
    the end corrects the target. BACKWARDS starts at the end of the row, which the pass before has read last.
    """
    dtype: tl.constexpr = drow_ptr.dtype.element_ty
    target, legal = load_target(row_ptr, target_id, V)
    head, body = row_parts(row_ptr, V)
    columns, inside = edge_columns(row_ptr, V, head, body)
    edges = tl.load(row_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    # In place: no thread may write before all have read the target and the edge, which every warp reads.
    tl.debug_barrier()
    body_ptr, dbody_ptr = aligned(row_ptr, head), aligned(drow_ptr, head)
    point, log2_total, entropy, dlogp, dentropy = row
    row = (score(point, softmax, HAS_SOFTCAP), log2_total, entropy, dlogp, dentropy)
    dedges = dlogits_tile(edges, row, softmax, False, HAS_SOFTCAP, HAS_ENTROPY)
    tl.store(drow_ptr + columns, dedges.to(dtype), mask=inside)

    whole = body // BLOCK_V * BLOCK_V
    for step in range(0, whole, BLOCK_V):
        offsets = (whole - BLOCK_V - step if BACKWARDS else step) + tl.arange(0, BLOCK_V)
        x = tl.load(body_ptr + offsets, eviction_policy=EVICTION).to(tl.float32)
        dx = dlogits_tile(x, row, softmax, False, HAS_SOFTCAP, HAS_ENTROPY)
        tl.store(dbody_ptr + offsets, dx.to(dtype), eviction_policy=EVICTION)

    offsets, inside = last_tile(body_ptr, body, BLOCK_V)
    x = tl.load(body_ptr + offsets, mask=inside, other=0.0, eviction_policy=EVICTION).to(tl.float32)
    dx = dlogits_tile(x, row, softmax, False, HAS_SOFTCAP, HAS_ENTROPY)
    tl.store(dbody_ptr + offsets, dx.to(dtype), mask=inside, eviction_policy=EVICTION)

    tl.debug_barrier()
    dtarget = dlogits_tile(target, row, softmax, True, HAS_SOFTCAP, HAS_ENTROPY)
    tl.store(drow_ptr + tl.where(legal, target_id, 0).to(tl.int64), dtarget.to(dtype))


@triton.jit
def store_zeros(drow_ptr, V, BLOCK_V: tl.constexpr):
    """A row of zeros."""
    dtype: tl.constexpr = drow_ptr.dtype.element_ty
    head, body = row_parts(drow_ptr, V)
    dbody_ptr = aligned(drow_ptr, head)
    zeros = tl.zeros([BLOCK_V], dtype)
    for start in range(0, body // BLOCK_V * BLOCK_V, BLOCK_V):
        tl.store(dbody_ptr + start + tl.arange(0, BLOCK_V), zeros)
    offsets, inside = last_tile(dbody_ptr, body, BLOCK_V)
    tl.store(dbody_ptr + offsets, zeros, mask=inside)
    columns, inside = edge_columns(drow_ptr, V, head, body)
    tl.store(drow_ptr + columns, tl.zeros(columns.shape, dtype), mask=inside)


@triton.jit(
    do_not_specialize=["T", "V", "stride_dlogits_b", "stride_dlogits_t"],
    do_not_specialize_on_alignment=["dlogits_ptr"],
)
def scale_dlogits_kernel(
    dlogits_ptr,  # [B, T, V], written over
    grad_output_ptr,  # []
    T,
    V,
    stride_dlogits_b: tl.int64,
    stride_dlogits_t: tl.int64,
    BLOCK_V: tl.constexpr,
):
    grad_output = tl.load(grad_output_ptr)
    if grad_output != 1:
        n = tl.program_id(0).to(tl.int64)
        row_ptr = dlogits_ptr + n // T * stride_dlogits_b + n % T * stride_dlogits_t
        dtype: tl.constexpr = row_ptr.dtype.element_ty
        head, body = row_parts(row_ptr, V)
        columns, inside = edge_columns(row_ptr, V, head, body)
        edges = tl.load(row_ptr + columns, mask=inside).to(tl.float32)
        # No thread may write before all have read the edge, which every warp reads.
        tl.debug_barrier()
        tl.store(row_ptr + columns, (edges * grad_output).to(dtype), mask=inside)
        body_ptr = aligned(row_ptr, head)
        for start in range(0, body // BLOCK_V * BLOCK_V, BLOCK_V):
            offsets = start + tl.arange(0, BLOCK_V)
            tl.store(body_ptr + offsets, (tl.load(body_ptr + offsets).to(tl.float32) * grad_output).to(dtype))
        offsets, inside = last_tile(body_ptr, body, BLOCK_V)
        dx = tl.load(body_ptr + offsets, mask=inside).to(tl.float32) * grad_output
        tl.store(body_ptr + offsets, dx.to(dtype), mask=inside)


@torch.library.custom_op("humanline::scale_dlogits_", mutates_args={"dlogits"})
def scale_dlogits_(dlogits: Tensor, grad_output: Tensor) -> None:
    """``dlogits *= grad_output``, [B, T, V] and [], without a pass over memory where it is 1: the device looks."""
    B, T, V = dlogits.shape
    if B * T:
        with torch.cuda.device_of(dlogits):
            scale_dlogits_kernel[(B * T,)](
                dlogits, grad_output, T, V, *dlogits.stride()[:2], **vocabulary_tiles(V, dlogits.element_size())
            )
