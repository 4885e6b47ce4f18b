"""The only home of tuning numbers."""


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def vocabulary_tiles(V: int, itemsize: int) -> dict[str, int]:
    """Tiles of one row of logits: at most 8 KiB over 8 warps, two 16-byte loads per thread and iteration."""
    block_v = min(8192 // itemsize, max(16, next_power_of_2(V)))
    return {"BLOCK_V": block_v, "num_warps": min(8, max(1, block_v * itemsize // 1024))}


TOKEN_TILES = {"BLOCK_T": 1024, "num_warps": 4}
"""Tiles over tokens, in kernels that read a few floats per token; one size, so one compilation for every length."""
