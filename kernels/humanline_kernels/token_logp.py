"""logits -> logp (and entropy) for one model or for policy and reference in one launch; dlogp -> dlogits.

Grid: one program per row, 1-D. Traffic in units of N·V elements: forward reads 1 per model, backward reads 1 and writes
1. Rows that do not count are never read, and rows whose coefficients are 0 are not read in backward. The symbols of the
softmax (sharpness, point, log2_total ...) are explained in softmax.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from humanline_kernels.dlogits import empty_dlogits, store_dlogits, store_zeros
from humanline_kernels.operators import operator
from humanline_kernels.softmax import LOG2E, score_row
from humanline_kernels.tiles import vocabulary_tiles


@triton.jit(
    do_not_specialize=[
        "N",
        "T",
        "V",
        "stride_logits_b",
        "stride_logits_t",
        "stride_ref_logits_b",
        "stride_ref_logits_t",
    ],
    do_not_specialize_on_alignment=["logits_ptr", "ref_logits_ptr"],
)
def token_logp_forward_kernel(
    # inputs
    logits_ptr,  # [B, T, V]
    ref_logits_ptr,  # [B, T, V]: read by the second half of the grid, if there is one
    target_ids_ptr,  # [B, T]
    loss_mask_ptr,  # [B, T]
    temperature_ptr,  # [B, T], or anything without HAS_TEMPERATURE
    # outputs
    logp_ptr,  # [B, T]
    entropy_ptr,  # [B, T], or anything without HAS_ENTROPY
    point_ptr,  # [B, T]
    log2_total_ptr,  # [B, T]
    ref_logp_ptr,  # [B, T], or anything
    # sizes
    N,  # B · T
    T,
    V,
    # strides
    stride_logits_b: tl.int64,
    stride_logits_t: tl.int64,
    stride_ref_logits_b: tl.int64,
    stride_ref_logits_t: tl.int64,
    # scalars
    sharpness,
    cap_slope,
    # flags and blocks
    HAS_TEMPERATURE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    n = program % N
    counts, target_id = tl.load(loss_mask_ptr + n) != 0, tl.load(target_ids_ptr + n)
    b, t = n // T, n % T
    row_ptr = logits_ptr + b * stride_logits_b + t * stride_logits_t
    row_logp_ptr = logp_ptr + n
    if program >= N:
        row_ptr = ref_logits_ptr + b * stride_ref_logits_b + t * stride_ref_logits_t
        row_logp_ptr = ref_logp_ptr + n
    logp, entropy, point, log2_total = 0.0, 0.0, 0.0, 0.0
    if counts:
        if HAS_TEMPERATURE:
            sharpness /= tl.load(temperature_ptr + n)
        softmax = (sharpness, cap_slope)
        logp, entropy, point, log2_total = score_row(
            row_ptr, target_id, V, softmax, HAS_SOFTCAP, HAS_ENTROPY, BLOCK_V, EVICTION=""
        )
    tl.store(row_logp_ptr, logp)
    if program < N:
        tl.store(point_ptr + n, point)
        tl.store(log2_total_ptr + n, log2_total)
        if HAS_ENTROPY:
            tl.store(entropy_ptr + n, entropy)


@triton.jit(
    do_not_specialize=["T", "V", "stride_logits_b", "stride_logits_t", "stride_dlogits_b", "stride_dlogits_t"],
    do_not_specialize_on_alignment=["logits_ptr", "dlogits_ptr"],
)
def token_logp_backward_kernel(
    # inputs
    dlogp_ptr,  # [B, T]
    dentropy_ptr,  # [B, T], or anything without HAS_ENTROPY
    logits_ptr,  # [B, T, V]
    target_ids_ptr,  # [B, T]
    loss_mask_ptr,  # [B, T]
    temperature_ptr,  # [B, T], or anything without HAS_TEMPERATURE
    point_ptr,  # [B, T]
    log2_total_ptr,  # [B, T]
    entropy_ptr,  # [B, T], or anything without HAS_ENTROPY
    grad_output_ptr,  # [], a factor of dlogp, or anything without HAS_GRAD_OUTPUT
    # outputs
    dlogits_ptr,  # [B, T, V]; rows aligned as the rows of logits are
    # sizes
    T,
    V,
    # strides
    stride_logits_b: tl.int64,
    stride_logits_t: tl.int64,
    stride_dlogits_b: tl.int64,
    stride_dlogits_t: tl.int64,
    # scalars
    sharpness,
    cap_slope,
    gain,  # ∂z/∂x without the cap's slope and temperature_ptr: scale · inverse_temperature
    # flags and blocks
    HAS_GRAD_OUTPUT: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    # All loads together: one latency instead of a chain.
    counts, target_id = tl.load(loss_mask_ptr + n) != 0, tl.load(target_ids_ptr + n)
    point, log2_total = tl.load(point_ptr + n), tl.load(log2_total_ptr + n)
    dlogp, dentropy, entropy = tl.load(dlogp_ptr + n), 0.0, 0.0
    if HAS_GRAD_OUTPUT:
        dlogp *= tl.load(grad_output_ptr)
    dlogp = tl.where(counts, dlogp, 0.0)
    if HAS_ENTROPY:
        dentropy, entropy = tl.where(counts, tl.load(dentropy_ptr + n), 0.0), tl.load(entropy_ptr + n)
    b, t = n // T, n % T
    drow_ptr = dlogits_ptr + b * stride_dlogits_b + t * stride_dlogits_t
    # True for NaN too: a coefficient of NaN reaches dlogits.
    if (dlogp != 0) | (dentropy != 0):
        if HAS_TEMPERATURE:
            temperature = tl.load(temperature_ptr + n)
            sharpness /= temperature
            gain /= temperature
        row_ptr = logits_ptr + b * stride_logits_b + t * stride_logits_t
        row = (point, log2_total, entropy, dlogp * gain, dentropy * gain)  # as dlogits_tile takes it
        softmax = (sharpness, cap_slope)
        store_dlogits(
            row_ptr,
            drow_ptr,
            target_id,
            V,
            row,
            softmax,
            HAS_SOFTCAP,
            HAS_ENTROPY,
            BACKWARDS=False,
            BLOCK_V=BLOCK_V,
            EVICTION="",
        )
    else:
        store_zeros(drow_ptr, V, BLOCK_V)


def softmax_scalars(scale: float, softcap: float | None, inverse_temperature: float) -> dict[str, float | bool]:
    """The kernels' scalars for a softmax, before a temperature per token (symbols: softmax.py)."""
    if softcap is None:
        return {"sharpness": LOG2E.value * scale * inverse_temperature, "cap_slope": 0.0}
    return {"sharpness": LOG2E.value * softcap * inverse_temperature, "cap_slope": scale / softcap}


Scores = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _empty_scores(logits: Tensor, with_entropy: bool, with_reference: bool) -> Scores:
    B, T, _ = logits.shape
    logp = logits.new_empty(B, T, dtype=torch.float32)
    entropy, ref_logp = (logp.new_empty((B, T) if wanted else (0,)) for wanted in (with_entropy, with_reference))
    return logp, entropy, torch.empty_like(logp), torch.empty_like(logp), ref_logp


@operator("token_logp_forward")
def token_logp_forward(
    logits: Tensor,
    ref_logits: Tensor | None,
    target_ids: Tensor,
    loss_mask: Tensor,
    temperature: Tensor | None,
    inverse_temperature: float,
    softcap: float | None,
    scale: float,
    with_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``logp``, ``entropy``, ``point``, ``log2_total``, ``ref_logp``: [B, T], float32; [0] if not asked for.

    Log-probs and entropy in nats, 0 where the mask is False. Backward needs point and log2_total.

    Args:
        logits: [B, T, V], stride 1 over V.
        ref_logits: [B, T, V], the dtype of ``logits``, stride 1 over V; or None.
        target_ids: [B, T], integer, contiguous.
        loss_mask: [B, T], bool, contiguous.
        temperature: [B, T], float32, contiguous, or None: the softmax is of ``cap(scale · logits) / temperature``.
        inverse_temperature: a further factor, for all tokens.
        softcap: bound of ``cap``; None does not cap.
    """
    B, T, V = logits.shape
    logp, entropy, point, log2_total, ref_logp = _empty_scores(logits, with_entropy, ref_logits is not None)
    if B * T:
        reference = logits if ref_logits is None else ref_logits
        with torch.cuda.device_of(logits):
            token_logp_forward_kernel[(B * T * (1 if ref_logits is None else 2),)](
                logits,
                reference,
                target_ids,
                loss_mask,
                loss_mask if temperature is None else temperature,
                logp,
                entropy,
                point,
                log2_total,
                ref_logp,
                B * T,
                T,
                V,
                *logits.stride()[:2],
                *reference.stride()[:2],
                **softmax_scalars(scale, softcap, inverse_temperature),
                HAS_TEMPERATURE=temperature is not None,
                HAS_SOFTCAP=softcap is not None,
                HAS_ENTROPY=with_entropy,
                **vocabulary_tiles(V, logits.element_size()),
            )
    return logp, entropy, point, log2_total, ref_logp


@token_logp_forward.register_fake
def _(logits, ref_logits, target_ids, loss_mask, temperature, inverse_temperature, softcap, scale, with_entropy):
    return _empty_scores(logits, with_entropy, ref_logits is not None)


def _write_dlogits(
    dlogp: Tensor,
    dentropy: Tensor | None,
    logits: Tensor,
    target_ids: Tensor,
    loss_mask: Tensor,
    temperature: Tensor | None,
    point: Tensor,
    log2_total: Tensor,
    entropy: Tensor | None,
    dlogits: Tensor,
    inverse_temperature: float,
    softcap: float | None,
    scale: float,
    grad_output: Tensor | None,
) -> None:
    B, T, V = logits.shape
    if not B * T:
        return
    with torch.cuda.device_of(logits):
        token_logp_backward_kernel[(B * T,)](
            dlogp,
            dlogp if dentropy is None else dentropy,
            logits,
            target_ids,
            loss_mask,
            loss_mask if temperature is None else temperature,
            point,
            log2_total,
            point if entropy is None else entropy,
            point if grad_output is None else grad_output,
            dlogits,
            T,
            V,
            *logits.stride()[:2],
            *dlogits.stride()[:2],
            **softmax_scalars(scale, softcap, inverse_temperature),
            gain=scale * inverse_temperature,
            HAS_GRAD_OUTPUT=grad_output is not None,
            HAS_TEMPERATURE=temperature is not None,
            HAS_SOFTCAP=softcap is not None,
            HAS_ENTROPY=dentropy is not None,
            **vocabulary_tiles(V, logits.element_size()),
        )


@operator("token_logp_backward")
def token_logp_backward(
    dlogp: Tensor,
    dentropy: Tensor | None,
    logits: Tensor,
    target_ids: Tensor,
    loss_mask: Tensor,
    temperature: Tensor | None,
    point: Tensor,
    log2_total: Tensor,
    entropy: Tensor | None,
    inverse_temperature: float,
    softcap: float | None,
    scale: float,
    grad_output: Tensor | None = None,
) -> Tensor:
    """``dlogits`` [B, T, V] in the logits' dtype; every element is written.

    Args:
        dlogp: [B, T], float32, contiguous.
        dentropy: the same, or None.
        logits, target_ids, loss_mask, temperature, point, log2_total, entropy: arguments and results of forward.
        grad_output: [], float32, a factor of ``dlogp``; None is 1.
    """
    dlogits = empty_dlogits(logits, logits.data_ptr())
    _write_dlogits(
        dlogp,
        dentropy,
        logits,
        target_ids,
        loss_mask,
        temperature,
        point,
        log2_total,
        entropy,
        dlogits,
        inverse_temperature,
        softcap,
        scale,
        grad_output,
    )
    return dlogits


@token_logp_backward.register_fake
def _(dlogp, dentropy, logits, *_):
    return empty_dlogits(logits, 0)


def write_dlogits_(
    dlogp: Tensor,
    dentropy: Tensor | None,
    logits: Tensor,
    target_ids: Tensor,
    loss_mask: Tensor,
    temperature: Tensor | None,
    point: Tensor,
    log2_total: Tensor,
    entropy: Tensor | None,
    inverse_temperature: float,
    softcap: float | None,
    scale: float,
    grad_output: Tensor | None = None,
) -> None:
    """As :func:`token_logp_backward`, with ``dlogits`` written over ``logits``."""
    _write_dlogits(
        dlogp,
        dentropy,
        logits,
        target_ids,
        loss_mask,
        temperature,
        point,
        log2_total,
        entropy,
        logits,
        inverse_temperature,
        softcap,
        scale,
        grad_output,
    )


token_logp_backward_ = torch.library.custom_op("humanline::token_logp_backward_", mutates_args={"logits"})(
    write_dlogits_
)
"""``write_dlogits_`` for code that may be compiled, and for logits whose writes autograd must see."""
