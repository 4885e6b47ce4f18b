"""The loads and stores of a case on logits, and no mathematics: the best that the memory system gives.

Flat, over as many bytes as the case has to move: the rows that count are read, dlogits is written whole. Words are
int32, whatever the logits are, so that folding them (xor) costs nothing beside their load.
"""

# A jitted function's body is Triton's language, as in kernels/.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.batches import Batch
from benchmarks.kernels.cases import Case, Mode

TILES = (
    {"BLOCK": 2048, "TILES": 4, "num_warps": 8},
    {"BLOCK": 4096, "TILES": 2, "num_warps": 8},
    {"BLOCK": 2048, "TILES": 8, "num_warps": 4},
)
"""Ways to cut the words up, each with two to four 16-byte loads per thread and tile; the fastest is the ceiling."""


@triton.jit
def read_kernel(
    policy_ptr,  # [num_words]
    reference_ptr,  # [num_words], read if HAS_REFERENCE
    folded_ptr,  # [programs]
    num_words,
    HAS_REFERENCE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.int32)
    for tile in tl.static_range(TILES):
        word = (program * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        total ^= tl.load(policy_ptr + word, mask=word < num_words, other=0)
        if HAS_REFERENCE:
            total ^= tl.load(reference_ptr + word, mask=word < num_words, other=0)
    tl.store(folded_ptr + program, tl.xor_sum(total, axis=0))


@triton.jit
def copy_kernel(
    policy_ptr,  # [num_words]
    reference_ptr,  # [num_words], read if HAS_REFERENCE
    dlogits_ptr,  # [num_written]
    num_words,
    num_written,
    HAS_REFERENCE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    for tile in tl.static_range(TILES):
        word = (program * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        total = tl.load(policy_ptr + word, mask=word < num_words, other=0)
        if HAS_REFERENCE:
            total ^= tl.load(reference_ptr + word, mask=word < num_words, other=0)
        tl.store(dlogits_ptr + word, total, mask=word < num_written)


def bare_traffic(case: Case, mode: Mode, batch: Batch) -> list[Callable[[], Tensor]]:
    """One call for each of :data:`TILES`, with the launches of the case: forward, then backward, or both in one."""
    policy, reference = _words(batch.logits), _words(batch.ref_logits)
    row_bytes = batch.logits.shape[-1] * batch.logits.itemsize
    num_words = int(batch.loss_mask.sum()) * row_bytes // 64 * 16  # a multiple of 16 keeps every access 16 bytes wide
    dlogits = policy if case.inplace_gradient or mode == "nograd" else torch.empty_like(policy)

    def launches(tiles: dict[str, int]) -> Tensor:
        both = case.has_reference
        if not case.one_launch:
            programs = triton.cdiv(num_words, tiles["BLOCK"] * tiles["TILES"])
            folded = torch.empty(programs, dtype=torch.int32, device=policy.device)
            read_kernel[(programs,)](policy, reference, folded, num_words, HAS_REFERENCE=both, **tiles)
            if mode == "nograd":
                return folded
        programs = triton.cdiv(len(dlogits), tiles["BLOCK"] * tiles["TILES"])
        reads = {"HAS_REFERENCE": both and case.one_launch}
        copy_kernel[(programs,)](policy, reference, dlogits, num_words, len(dlogits), **reads, **tiles)
        return dlogits

    return [partial(launches, tiles) for tiles in TILES]


def _words(logits: Tensor) -> Tensor:
    """The storage of [B, T, V] as int32, without what is left over of 64 bytes."""
    flat = logits.detach().flatten()
    words_of_16 = flat.numel() * flat.itemsize // 64 * 16
    return flat[: words_of_16 * 4 // flat.itemsize].view(torch.int32)
