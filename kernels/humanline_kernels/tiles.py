"""Tile sizes, warps and programs of every launch. What a cache holds is in cache.py."""

import torch

WARP = 64 if torch.version.hip else 32
"""Threads per warp on the GPUs that this torch is built for."""


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def vocabulary_tiles(V: int, itemsize: int, warp: int = WARP) -> dict[str, int]:
    """Tiles of one row of logits, for 256 threads: two 16-byte loads per thread and iteration; four if a warp has 64.

    So a multiprocessor of NVIDIA's runs eight programs at once. AMD's GPUs need longer tiles, for the loop's overhead.
    """
    tile_bytes, num_warps = (8192, 8) if warp == 32 else (16384, 4)
    block_v = min(tile_bytes // itemsize, max(16, next_power_of_2(V)))
    return {"BLOCK_V": block_v, "num_warps": min(num_warps, max(1, block_v * itemsize // (tile_bytes // num_warps)))}


TOKEN_TILES = {"BLOCK_T": 1024, "num_warps": 4}
"""Tiles over tokens, for kernels that read a few floats per token. One size: one compilation for all lengths."""

MEANS_TILES = {"BLOCK_R": 1024, "BLOCK_T": 1024, "num_warps": 8}
"""Rows of partial sums, of which there are as many as sequences or, in one launch, tokens; and tokens, as above."""


def one_launch_per_multiprocessor(row_bytes: int) -> int:
    """Rows per multiprocessor: one if long rows fill it, four if short ones must hide each other's latency."""
    return 1 if row_bytes > 2**17 else 4


def one_launch_tiles(V: int, itemsize: int) -> dict[str, int]:
    """Tiles of 64 KiB per multiprocessor: eight 16-byte loads in each of 512 threads, if the compiler keeps them."""
    share = one_launch_per_multiprocessor(V * itemsize)
    block_v = min(65536 // share // itemsize, max(16, next_power_of_2(V)))
    return {"BLOCK_V": block_v, "num_warps": min(16 // share, max(1, block_v * itemsize // 4096))}


def score_and_dlogits_tiles(V: int, itemsize: int, warp: int = WARP) -> dict[str, int]:
    """The tiles of :func:`vocabulary_tiles`, for the same order of sums, and how many are loaded at once.

    The numbers are those with the most bytes in flight and no spills on sm_80, sm_90 and sm_100 (Triton 3.6.0, 3.7.1
    and 3.9.0). Left alone, the compiler keeps long rows to 128 registers, and to half of their loads.
    """
    if one_launch_per_multiprocessor(V * itemsize) == 1:
        return {**vocabulary_tiles(V, itemsize, warp), "SUMMED_TILES": 7, "WRITTEN_TILES": 8, "maxnreg": 176}
    return {**vocabulary_tiles(V, itemsize, warp), "SUMMED_TILES": 3, "WRITTEN_TILES": 2}


def one_launch_programs(V: int, itemsize: int, held_bytes: int, multiprocessors: int) -> int:
    """Rows in flight such that each is still in the L2 cache at its second read; 0 if those are too few.

    The cache holds ``held_bytes`` of them (cache.py). At least 60 % of the multiprocessors must get a row: the loops
    need that share of an H200's exp units at full bandwidth.
    """
    row_bytes = V * itemsize
    programs = min(one_launch_per_multiprocessor(row_bytes) * multiprocessors, held_bytes // row_bytes)
    return programs if programs >= 0.6 * multiprocessors else 0
