"""logits -> logp, for one model or for policy and reference in one pass; dlogp -> dlogits.

Grid: one program per token, 1-D. Traffic in units of N·V elements: forward reads 1 (2 with a reference), backward
reads 1 and writes 1. Rows that do not count are never read, and rows whose dlogp is 0 are not read in backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from humanline_kernels.launch import vocabulary_tiles
from humanline_kernels.online_softmax import LOG2E, log_sumexp_of_row


@triton.jit
def score_row(row_ptr, target_id, V, stride_v, BLOCK_V: tl.constexpr):
    """(logp, row_max, log_sumexp) of one row (docs/math.md, equation 1); NaN for an id outside [0, V)."""
    legal = (target_id >= 0) & (target_id < V)
    target_logit = tl.load(row_ptr + tl.where(legal, target_id, 0).to(tl.int64) * stride_v).to(tl.float32)
    row_max, log_sumexp = log_sumexp_of_row(row_ptr, target_logit, V, stride_v, BLOCK_V)
    logp = (target_logit - row_max) - log_sumexp
    # Rounding can lift a certain target's log-prob above 0 by an ulp; NaN stays NaN.
    logp = tl.where(logp > 0, 0.0, logp)
    return tl.where(legal, logp, float("nan")), row_max, log_sumexp


@triton.jit(do_not_specialize=["T"])
def token_logp_forward_kernel(
    # inputs
    logits_ptr,  # [B, T, V]
    ref_logits_ptr,  # [B, T, V], or anything without HAS_REFERENCE
    target_ids_ptr,  # [B, T]
    loss_mask_ptr,  # [B, T]
    # outputs
    logp_ptr,  # [B, T]
    row_max_ptr,  # [B, T]
    log_sumexp_ptr,  # [B, T]
    ref_logp_ptr,  # [B, T], or anything without HAS_REFERENCE
    # sizes
    T,
    V,
    # strides
    stride_logits_b,
    stride_logits_t,
    stride_logits_v,
    stride_ref_logits_b,
    stride_ref_logits_t,
    stride_ref_logits_v,
    # flags and blocks
    HAS_REFERENCE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    b, t = n // T, n % T
    logp, row_max, log_sumexp, ref_logp = 0.0, 0.0, 0.0, 0.0
    if tl.load(loss_mask_ptr + n) != 0:
        target_id = tl.load(target_ids_ptr + n)
        row_ptr = logits_ptr + b * stride_logits_b + t * stride_logits_t
        logp, row_max, log_sumexp = score_row(row_ptr, target_id, V, stride_logits_v, BLOCK_V)
        if HAS_REFERENCE:
            ref_row_ptr = ref_logits_ptr + b * stride_ref_logits_b + t * stride_ref_logits_t
            ref_logp, _, _ = score_row(ref_row_ptr, target_id, V, stride_ref_logits_v, BLOCK_V)
    tl.store(logp_ptr + n, logp)
    tl.store(row_max_ptr + n, row_max)
    tl.store(log_sumexp_ptr + n, log_sumexp)
    if HAS_REFERENCE:
        tl.store(ref_logp_ptr + n, ref_logp)


@triton.jit
def softmax_tile(x, row_max, log_sumexp, EXACT: tl.constexpr):
    """exp(x − lse). One rounded constant is invisible in a 16-bit gradient; a float32 one subtracts row_max first."""
    if EXACT:
        return tl.exp2(tl.fma(x - row_max, LOG2E, -log_sumexp * LOG2E))
    return tl.exp2(tl.fma(x, LOG2E, -(row_max + log_sumexp) * LOG2E))


@triton.jit(do_not_specialize=["T"])
def token_logp_backward_kernel(
    # inputs
    dlogp_ptr,  # [B, T]
    logits_ptr,  # [B, T, V]
    target_ids_ptr,  # [B, T]
    loss_mask_ptr,  # [B, T]
    row_max_ptr,  # [B, T]
    log_sumexp_ptr,  # [B, T]
    # outputs
    dlogits_ptr,  # [B, T, V], contiguous
    # sizes
    T,
    V,
    # strides
    stride_logits_b,
    stride_logits_t,
    stride_logits_v,
    # flags and blocks
    EXACT: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    # ∂logp/∂x_j = 1[j = target] − softmax(x)_j (docs/math.md, equation 12). The loop writes −dlogp · softmax, one
    # scalar store at the end puts the target's element right: no comparison per element.
    n = tl.program_id(0).to(tl.int64)
    b, t = n // T, n % T
    drow_ptr = dlogits_ptr + n * V
    counts = tl.load(loss_mask_ptr + n) != 0
    dlogp = tl.load(dlogp_ptr + n, mask=counts, other=0.0)
    # True for NaN: a poisoned coefficient is written, not hidden.
    if dlogp != 0:
        target_id = tl.load(target_ids_ptr + n)
        legal = (target_id >= 0) & (target_id < V)
        dlogp = tl.where(legal, dlogp, float("nan"))
        target_id = tl.where(legal, target_id, 0).to(tl.int64)
        row_ptr = logits_ptr + b * stride_logits_b + t * stride_logits_t
        row_max = tl.load(row_max_ptr + n)
        log_sumexp = tl.load(log_sumexp_ptr + n)
        target_logit = tl.load(row_ptr + target_id * stride_logits_v).to(tl.float32)
        for start in range(0, V, BLOCK_V):
            columns = start + tl.arange(0, BLOCK_V)
            x = tl.load(row_ptr + columns.to(tl.int64) * stride_logits_v, mask=columns < V, other=0.0).to(tl.float32)
            dx = -dlogp * softmax_tile(x, row_max, log_sumexp, EXACT)
            tl.store(drow_ptr + columns, dx.to(dlogits_ptr.dtype.element_ty), mask=columns < V)
        tl.debug_barrier()
        dtarget = dlogp * (1 - softmax_tile(target_logit, row_max, log_sumexp, True))
        tl.store(drow_ptr + target_id, dtarget.to(dlogits_ptr.dtype.element_ty))
    else:
        zeros = tl.zeros([BLOCK_V], dlogits_ptr.dtype.element_ty)
        for start in range(0, V, BLOCK_V):
            columns = start + tl.arange(0, BLOCK_V)
            tl.store(drow_ptr + columns, zeros, mask=columns < V)


def token_logp_forward(
    logits: Tensor, ref_logits: Tensor | None, target_ids: Tensor, loss_mask: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """``logp``, ``ref_logp``, ``row_max``, ``log_sumexp``, [B, T] float32 each, 0 where the mask is False.

    Args:
        logits: [B, T, V], any strides.
        ref_logits: [B, T, V], any strides, or None.
        target_ids: [B, T], integer, contiguous.
        loss_mask: [B, T], bool, contiguous.
    """
    B, T, V = logits.shape
    logp, row_max, log_sumexp = (logits.new_empty(B, T, dtype=torch.float32) for _ in range(3))
    ref_logp = None if ref_logits is None else torch.empty_like(logp)
    if logp.numel():
        with torch.cuda.device_of(logits):
            token_logp_forward_kernel[(B * T,)](
                logits,
                logits if ref_logits is None else ref_logits,
                target_ids,
                loss_mask,
                logp,
                row_max,
                log_sumexp,
                logp if ref_logp is None else ref_logp,
                T,
                V,
                *logits.stride(),
                *(logits if ref_logits is None else ref_logits).stride(),
                HAS_REFERENCE=ref_logits is not None,
                **vocabulary_tiles(V, logits.element_size()),
            )
    return logp, ref_logp, row_max, log_sumexp


def token_logp_backward(
    dlogp: Tensor, logits: Tensor, target_ids: Tensor, loss_mask: Tensor, row_max: Tensor, log_sumexp: Tensor
) -> Tensor:
    """``dlogits`` [B, T, V], contiguous, in the logits' dtype; every element is written.

    Args:
        dlogp: [B, T], float32, contiguous.
        logits: [B, T, V], any strides.
        target_ids, loss_mask, row_max, log_sumexp: [B, T], contiguous, as in and out of forward.
    """
    B, T, V = logits.shape
    dlogits = logits.new_empty(B, T, V)
    if dlogp.numel():
        with torch.cuda.device_of(logits):
            token_logp_backward_kernel[(B * T,)](
                dlogp,
                logits,
                target_ids,
                loss_mask,
                row_max,
                log_sumexp,
                dlogits,
                T,
                V,
                *logits.stride(),
                EXACT=logits.dtype == torch.float32,
                **vocabulary_tiles(V, logits.element_size()),
            )
    return dlogits
