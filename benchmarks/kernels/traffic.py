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
def traffic_kernel(
    policy_ptr,  # [num_words]
    reference_ptr,  # [num_words], read if HAS_REFERENCE
    written_ptr,  # [num_written] if WRITES, dlogits; else [programs], the words read, folded
    num_words,
    num_written,
    HAS_REFERENCE: tl.constexpr,
    WRITES: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    folded = tl.zeros([BLOCK], tl.int32)
    for tile in tl.static_range(TILES):
        word = (program * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        total = tl.load(policy_ptr + word, mask=word < num_words, other=0)
        if HAS_REFERENCE:
            total ^= tl.load(reference_ptr + word, mask=word < num_words, other=0)
        if WRITES:
            tl.store(written_ptr + word, total, mask=word < num_written)
        else:
            folded ^= total
    if not WRITES:
        tl.store(written_ptr + program, tl.xor_sum(folded, axis=0))


def bare_traffic(case: Case, mode: Mode, batch: Batch) -> list[Callable[[], Tensor]]:
    """One call for each of :data:`TILES`, with the launches of the case: forward, then backward, or both in one."""
    policy, reference = _words(batch.logits), _words(batch.ref_logits)
    row_bytes = batch.logits.shape[-1] * batch.logits.itemsize
    num_words = int(batch.loss_mask.sum()) * row_bytes // 64 * 16  # a multiple of 16 keeps every access 16 bytes wide
    dlogits = policy if case.inplace_gradient or mode == "nograd" else torch.empty_like(policy)

    def launch(written: Tensor, programs: int, both: bool, writes: bool, tiles: dict[str, int]) -> Tensor:
        flags = {"HAS_REFERENCE": both, "WRITES": writes, **tiles}
        traffic_kernel[(programs,)](policy, reference, written, num_words, len(written), **flags)
        return written

    def launches(tiles: dict[str, int]) -> Tensor:
        words = tiles["BLOCK"] * tiles["TILES"]
        if not case.one_launch:
            programs = triton.cdiv(num_words, words)
            folded = torch.empty(programs, dtype=torch.int32, device=policy.device)
            launch(folded, programs, case.has_reference, False, tiles)
            if mode == "nograd":
                return folded
        return launch(dlogits, triton.cdiv(len(dlogits), words), case.one_launch, True, tiles)

    return [partial(launches, tiles) for tiles in TILES]


def _words(logits: Tensor) -> Tensor:
    """The storage of [B, T, V] as int32, cut to a multiple of 64 bytes."""
    flat = logits.detach().flatten()
    words_of_16 = flat.numel() * flat.itemsize // 64 * 16
    return flat[: words_of_16 * 4 // flat.itemsize].view(torch.int32)
