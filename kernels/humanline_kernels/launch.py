"""The only home of tuning numbers."""


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def vocabulary_tiles(V: int, itemsize: int) -> dict[str, int]:
    """Tiles of one row of logits: at most 8 KiB over 8 warps, two 16-byte loads per thread and iteration."""
    block_v = min(8192 // itemsize, max(16, next_power_of_2(V)))
    return {"BLOCK_V": block_v, "num_warps": min(8, max(1, block_v * itemsize // 1024))}


TOKEN_TILES = {"BLOCK_T": 1024, "num_warps": 4}
"""Tiles over tokens, in kernels that read a few floats per token; one size, so one compilation for every length."""


def one_launch_tiles(V: int, itemsize: int) -> dict[str, int]:
    """Tiles of a row that a whole multiprocessor works on: at most 64 KiB over 16 warps, eight 16-byte loads each."""
    block_v = min(65536 // itemsize, max(16, next_power_of_2(V)))
    return {"BLOCK_V": block_v, "num_warps": min(16, max(1, block_v * itemsize // 4096))}


def one_launch_programs(V: int, itemsize: int, l2_bytes: int, multiprocessors: int) -> int:
    """How many rows may be in flight so that each is still in the L2 cache when it is read again; 0 if too few.

    They may fill 60 % of the cache (the rest: what is written meanwhile). Fewer than 60 % of the multiprocessors would
    not keep the memory busy: the loops need that much of their issue slots.
    """
    programs = min(multiprocessors, int(0.6 * l2_bytes) // (V * itemsize))
    return programs if programs >= 0.6 * multiprocessors else 0
