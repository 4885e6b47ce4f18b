"""Rows of logits -> their scores, and in their place dlogits for coefficients of 1, in one launch.

Grid: as many programs as rows fit into the L2 cache, 1-D; program p takes the rows p, p + programs, … Traffic in units
of N·V elements: reads 1, writes 1. The second read finds the row in the cache: it runs from the row's end to its
beginning. Tiles and warps are those of token_logp, so every bit is: a policy scored there has the log-ratio 0 here.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from humanline_kernels.dlogits import store_dlogits
from humanline_kernels.softmax import score_row
from humanline_kernels.tiles import score_and_dlogits_tiles
from humanline_kernels.token_logp import softmax_scalars


@triton.jit(
    do_not_specialize=["N", "V", "stride_logits_n"],
    # Of the rows' numbers too: a chunk's begin anywhere.
    do_not_specialize_on_alignment=[
        "logits_ptr",
        "target_ids_ptr",
        "temperature_ptr",
        "logp_ptr",
        "point_ptr",
        "log2_total_ptr",
    ],
)
def score_and_dlogits_kernel(
    # inputs
    logits_ptr,  # [N, V], written over
    target_ids_ptr,  # [N]
    temperature_ptr,  # [N], or anything without HAS_TEMPERATURE
    # outputs
    logp_ptr,  # [N]
    point_ptr,  # [N]
    log2_total_ptr,  # [N]
    # sizes
    N,
    V,
    # strides
    stride_logits_n: tl.int64,
    # scalars
    sharpness,
    gain,  # ∂z/∂x without temperature_ptr: scale · inverse_temperature
    # flags and blocks
    HAS_TEMPERATURE: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SUMMED_TILES: tl.constexpr,  # loaded at once
    WRITTEN_TILES: tl.constexpr,
):
    for n in range(tl.program_id(0).to(tl.int64), N, tl.num_programs(0)):
        row_ptr = logits_ptr + n * stride_logits_n
        target_id = tl.load(target_ids_ptr + n)
        temperature = tl.load(temperature_ptr + n) if HAS_TEMPERATURE else 1.0
        softmax = (sharpness / temperature, 0.0)
        logp, _, point, log2_total = score_row(
            row_ptr, target_id, V, softmax, False, False, BLOCK_V, "evict_last", SUMMED_TILES
        )
        tl.store(logp_ptr + n, logp)
        tl.store(point_ptr + n, point)
        tl.store(log2_total_ptr + n, log2_total)
        store_dlogits(
            row_ptr,
            row_ptr,
            target_id,
            V,
            (point, log2_total, 0.0, gain / temperature, 0.0),
            softmax,
            HAS_SOFTCAP=False,
            HAS_ENTROPY=False,
            BACKWARDS=True,
            BLOCK_V=BLOCK_V * WRITTEN_TILES,
            EVICTION="evict_first",
        )


def score_and_write_dlogits_(
    logits: Tensor,
    target_ids: Tensor,
    temperature: Tensor | None,
    programs: int,
    inverse_temperature: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``logp``, ``point`` and ``log2_total`` [N], as of token_logp; dlogits for coefficients of 1 over the logits.

    Args:
        logits: [N, V], stride 1 over V.
        target_ids: [N], integer, contiguous.
        temperature: [N], float32, contiguous, or None.
        programs: rows taken at once.
        inverse_temperature, scale: as token_logp. A softcap has two launches: its arithmetic takes longer than a read.
    """
    N, V = logits.shape
    logp, point, log2_total = logits.new_empty(3, N, dtype=torch.float32)
    if N:
        with torch.cuda.device_of(logits):
            score_and_dlogits_kernel[(min(programs, N),)](
                logits,
                target_ids,
                target_ids if temperature is None else temperature,
                logp,
                point,
                log2_total,
                N,
                V,
                logits.stride(0),
                sharpness=softmax_scalars(scale, None, inverse_temperature)["sharpness"],
                gain=scale * inverse_temperature,
                HAS_TEMPERATURE=temperature is not None,
                **score_and_dlogits_tiles(V, logits.element_size()),
            )
    return logp, point, log2_total
