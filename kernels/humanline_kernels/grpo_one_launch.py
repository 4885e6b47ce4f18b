"""GRPO from logits to dlogits in one launch: a row's coefficient depends on its own log-prob alone.

Grid: as many programs as rows fit into the L2 cache, 1-D; program p takes the rows p, p + programs, … Traffic in units
of N·V elements: reads 1 for the policy and 1 for the reference, writes 1. The policy's second read finds the row in the
cache: it runs from the row's end to its beginning. Data that is not needed again is marked to leave the cache first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from humanline_kernels.dlogits import empty_dlogits, store_dlogits, store_zeros
from humanline_kernels.grpo_loss import grpo_terms, store_partials
from humanline_kernels.log_ratio import clamp_log_ratio
from humanline_kernels.means import divide_to_means
from humanline_kernels.operators import operator
from humanline_kernels.softmax import score_row
from humanline_kernels.tiles import one_launch_tiles
from humanline_kernels.token_logp import softmax_scalars


@triton.jit(
    do_not_specialize=[
        "N",
        "T",
        "V",
        "stride_logits_b",
        "stride_logits_t",
        "stride_ref_logits_b",
        "stride_ref_logits_t",
        "stride_dlogits_b",
        "stride_dlogits_t",
        "stride_advantages_b",
        "stride_advantages_t",
    ],
    do_not_specialize_on_alignment=["logits_ptr", "ref_logits_ptr", "dlogits_ptr"],
)
def grpo_one_launch_kernel(
    # inputs
    logits_ptr,  # [B, T, V]
    ref_logits_ptr,  # [B, T, V], or anything without HAS_REFERENCE
    target_ids_ptr,  # [B, T]
    loss_mask_ptr,  # [B, T]
    temperature_ptr,  # [B, T], or anything without HAS_TEMPERATURE
    advantages_ptr,  # [B, T], any strides
    num_items_ptr,  # []
    # outputs
    logp_ptr,  # [B, T]
    ref_logp_ptr,  # [B, T]; an input without HAS_REFERENCE
    dlogits_ptr,  # [B, T, V]; rows aligned as the rows of logits are
    partials_ptr,  # [N, 7], as in grpo_loss
    # sizes
    N,  # B · T
    T,
    V,
    # strides
    stride_logits_b: tl.int64,
    stride_logits_t: tl.int64,
    stride_ref_logits_b: tl.int64,
    stride_ref_logits_t: tl.int64,
    stride_dlogits_b: tl.int64,
    stride_dlogits_t: tl.int64,
    stride_advantages_b: tl.int64,
    stride_advantages_t: tl.int64,
    # scalars
    sharpness,
    cap_slope,
    gain,
    epsilon,
    epsilon_high,
    beta,
    log_epsilon_P,
    log_epsilon_R,
    # flags and blocks
    HAS_REFERENCE: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    num_items = tl.load(num_items_ptr)
    for n in range(tl.program_id(0).to(tl.int64), N, tl.num_programs(0)):
        b, t = n // T, n % T
        row_ptr = logits_ptr + b * stride_logits_b + t * stride_logits_t
        counts = tl.load(loss_mask_ptr + n) != 0
        target_id = tl.load(target_ids_ptr + n)
        advantage = tl.load(advantages_ptr + b * stride_advantages_b + t * stride_advantages_t, mask=counts, other=0.0)
        temperature = tl.load(temperature_ptr + n) if HAS_TEMPERATURE else 1.0
        softmax = (sharpness / temperature, cap_slope)
        logp, ref_logp, point, log2_total = 0.0, 0.0, 0.0, 0.0
        if counts:
            if HAS_REFERENCE:
                ref_row_ptr = ref_logits_ptr + b * stride_ref_logits_b + t * stride_ref_logits_t
                ref_logp, _, _, _ = score_row(
                    ref_row_ptr, target_id, V, softmax, HAS_SOFTCAP, False, BLOCK_V, "evict_first"
                )
            else:
                ref_logp = tl.load(ref_logp_ptr + n)
            # Without a gradient the row is not read again, so the cache need not hold it.
            if (advantage != 0) | (beta != 0):
                logp, _, point, log2_total = score_row(
                    row_ptr, target_id, V, softmax, HAS_SOFTCAP, False, BLOCK_V, "evict_last"
                )
            else:
                logp, _, point, log2_total = score_row(
                    row_ptr, target_id, V, softmax, HAS_SOFTCAP, False, BLOCK_V, "evict_first"
                )
        raw = logp - ref_logp
        clamped = clamp_log_ratio(raw, log_epsilon_P, log_epsilon_R)
        loss, coefficient, k3, clip_low, clip_high = grpo_terms(
            raw, clamped, advantage, epsilon, epsilon_high, beta, log_epsilon_P, log_epsilon_R
        )
        dlogp = tl.where(counts, coefficient / num_items, 0.0)
        tl.store(logp_ptr + n, logp)
        if HAS_REFERENCE:
            tl.store(ref_logp_ptr + n, ref_logp)
        store_partials(
            partials_ptr + n * 7,
            tl.where(counts, loss, 0.0),
            counts,
            tl.where(counts, k3, 0.0),
            counts & clip_low,
            counts & clip_high,
            raw < log_epsilon_P,
            raw > log_epsilon_R,
        )
        drow_ptr = dlogits_ptr + b * stride_dlogits_b + t * stride_dlogits_t
        if dlogp != 0:
            row = (point, log2_total, 0.0, dlogp * (gain / temperature), 0.0)
            store_dlogits(
                row_ptr, drow_ptr, target_id, V, row, softmax, HAS_SOFTCAP, False, True, BLOCK_V, "evict_first"
            )
        else:
            store_zeros(drow_ptr, V, BLOCK_V)


@operator("grpo_one_launch")
def grpo_one_launch(
    logits: Tensor,
    ref_logits: Tensor | None,
    ref_logp: Tensor | None,
    target_ids: Tensor,
    loss_mask: Tensor,
    temperature: Tensor | None,
    advantages: Tensor,
    num_items_in_batch: Tensor | None,
    programs: int,
    inverse_temperature: float,
    softcap: float | None,
    scale: float,
    epsilon: float,
    epsilon_high: float,
    beta: float,
    log_epsilon_P: float,
    log_epsilon_R: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``loss`` [], ``dlogits`` [B, T, V], ``logp``, ``ref_logp`` [B, T] ([0] if given), and grpo_loss's metrics [5].

    Args:
        logits, ref_logits, target_ids, loss_mask, temperature and the scalars after it: as token_logp_forward.
        ref_logp: [B, T], float32, contiguous, nats; in place of ``ref_logits``.
        advantages: [B, T], float32, any strides.
        num_items_in_batch: [], float32, > 0, or None for the tokens that count here.
        programs: rows taken at once.
    """
    B, T, V = logits.shape
    logp = logits.new_empty(B, T, dtype=torch.float32)
    scored = logits.new_empty((0,) if ref_logits is None else (B, T), dtype=torch.float32)
    dlogits = empty_dlogits(logits, logits.data_ptr())
    partials = logp.new_empty(B * T, 7)
    num_items = loss_mask.sum(dtype=torch.float32).clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    reference = logits if ref_logits is None else ref_logits
    if B * T:
        with torch.cuda.device_of(logits):
            grpo_one_launch_kernel[(min(programs, B * T),)](
                logits,
                reference,
                target_ids,
                loss_mask,
                loss_mask if temperature is None else temperature,
                advantages,
                num_items,
                logp,
                scored if ref_logp is None else ref_logp,
                dlogits,
                partials,
                B * T,
                T,
                V,
                *logits.stride()[:2],
                *reference.stride()[:2],
                *dlogits.stride()[:2],
                *advantages.stride(),
                **softmax_scalars(scale, softcap, inverse_temperature),
                gain=scale * inverse_temperature,
                epsilon=epsilon,
                epsilon_high=epsilon_high,
                beta=beta,
                log_epsilon_P=log_epsilon_P,
                log_epsilon_R=log_epsilon_R,
                HAS_REFERENCE=ref_logits is not None,
                HAS_TEMPERATURE=temperature is not None,
                HAS_SOFTCAP=softcap is not None,
                **one_launch_tiles(V, logits.element_size()),
            )
    loss, metrics = divide_to_means(partials, logp.new_empty(0), num_items, tokens=1)
    return loss, dlogits, logp, scored, metrics


@grpo_one_launch.register_fake
def _(logits, ref_logits, *_):
    B, T, _ = logits.shape
    logp = logits.new_empty(B, T, dtype=torch.float32)
    scored = logits.new_empty((0,) if ref_logits is None else (B, T), dtype=torch.float32)
    return logp.new_empty(()), empty_dlogits(logits, 0), logp, scored, logp.new_empty(5)
