"""Selects the rows to multiply, their order, and the chunks."""

from typing import NamedTuple

import torch
from torch import Tensor

from humanline_fused.tokens import Tokens, sequence_of, to_device

Chunk = tuple[int, int]
"""[start, end) in the list of all rows that are multiplied."""


class Rows(NamedTuple):
    """The tokens that count; those without a gradient first.

    Attributes:
        positions: [n], int64, in [0, B · T), on the device.
        num_without_gradient: number of rows without a gradient.
        block_sizes: sizes of the following blocks of rows, whose coefficients depend on each other; None if none do.
    """

    positions: Tensor
    num_without_gradient: int
    block_sizes: list[int] | None = None


def rows_of(tokens: Tokens, given: Tensor | None) -> Rows:
    """The rows that count. Waits for the device, once, only if neither the mask nor the ``given`` rows are on the CPU.

    Where it does not wait, a ``gradient`` on the device is left aside: all rows have one.
    """
    counts, gradient = tokens.counts.flatten(), None if tokens.gradient is None else tokens.gradient.flatten()
    if given is None and gradient is not None and not _on_cpu(counts):
        return _in_two_groups(counts, to_device(gradient, counts.device))
    index, num_without_gradient = counts.nonzero()[:, 0] if given is None else given, 0
    if gradient is not None and _on_cpu(index, gradient):
        without = ~gradient[index]
        num_without_gradient = int(without.sum())
        if num_without_gradient:
            index = torch.cat([index[without], index[~without]])
    return Rows(to_device(index, tokens.device), num_without_gradient)


def _in_two_groups(counts: Tensor, gradient: Tensor) -> Rows:
    """The rows that count, those without a gradient first, from tensors on a device. Waits once, for both numbers."""
    without = counts & ~gradient
    num_rows, num_without_gradient = torch.stack([counts.sum(), without.sum()]).tolist()
    group = torch.where(without, 0, torch.where(counts, 1, 2))
    return Rows(group.argsort(stable=True)[:num_rows], num_without_gradient)


def _on_cpu(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" for tensor in tensors)


def in_blocks(rows: Rows, tokens: Tokens, given: Tensor | None) -> Rows:
    """The same rows, ordered such that rows of one sequence or pair are neighbours.

    Waits for the device, once, only if neither the mask nor the ``given`` rows are on the CPU, or if they are and
    ``cu_seqlens`` are not.
    """
    if tokens.depends == "token":
        return rows
    look = tokens.counts.flatten().nonzero()[:, 0] if _on_cpu(tokens.counts) else given
    index = rows.positions if look is None else look
    if tokens.cu_seqlens is None:
        sequence, num_sequences = index // tokens.target_ids.shape[1], tokens.target_ids.shape[0]
    else:
        sequence, num_sequences = sequence_of(index, tokens.cu_seqlens), tokens.cu_seqlens.shape[0] - 1
    num_blocks = num_sequences // 2 if tokens.depends == "pair" else num_sequences
    block = sequence % num_blocks
    # Not bincount, which waits for the device to find the largest block.
    sizes = block.new_zeros(num_blocks).index_add_(0, block, torch.ones_like(block)).tolist()
    index = to_device(index[block.argsort(stable=True)], tokens.device)
    return Rows(index, 0, [size for size in sizes if size])


def chunks_of(start: int, end: int, capacity: int) -> list[Chunk]:
    """Splits [start, end) into the fewest roughly equal chunks; sizes are multiples of a product's tile, 128 rows."""
    number = -(-(end - start) // capacity)
    if number < 1:
        return []
    size = -(-(end - start) // number)
    size = min(capacity, -(-size // 128) * 128)
    return [(a, min(a + size, end)) for a in range(start, end, size)]


def blocks_of(start: int, sizes: list[int], capacity: int) -> list[list[Chunk]]:
    """Groups whole blocks into chunks; a block larger than ``capacity`` is split into several chunks."""
    blocks: list[list[Chunk]] = []
    ends = [start]
    for size in sizes:
        if blocks and ends[-1] + size - blocks[-1][0][0] <= capacity:
            blocks[-1] = [(blocks[-1][0][0], ends[-1] + size)]
        else:
            blocks.append(chunks_of(ends[-1], ends[-1] + size, capacity))
        ends.append(ends[-1] + size)
    return blocks


def plan(num_first: int, rows: Rows, capacity: int) -> list[list[Chunk]]:
    """Blocks of chunks over ``num_first`` rows without a gradient, followed by ``rows``.

    The last chunk of rows without a gradient is merged with the first chunk of rows with one only if the two fit into
    one chunk: an additional chunk would cost an additional pass over the weight's gradient.
    """
    first = num_first + rows.num_without_gradient
    end = num_first + len(rows.positions)
    if rows.block_sizes is None:
        blocks = [[chunk] for chunk in chunks_of(first, end, capacity)]
    else:
        blocks = blocks_of(first, rows.block_sizes, capacity)
    before = chunks_of(0, first, capacity)
    if before and blocks and len(blocks[0]) == 1 and blocks[0][0][1] - before[-1][0] <= capacity:
        start, _ = before.pop()
        blocks[0] = [(start, blocks[0][0][1])]
    return [*([chunk] for chunk in before), *blocks]


def capacity_of(workspace_bytes: int | None, row_bytes: int, device: torch.device) -> int:
    """Number of rows of logits that exist at once."""
    if workspace_bytes is None:
        workspace_bytes = 2**27
        if device.type == "cuda":
            wanted = min(max(2**31, 4096 * row_bytes), 2**32)
            workspace_bytes = min(wanted, _free_memory(device, 2 * wanted) // 2)
    return max(1, workspace_bytes // row_bytes)


def _free_memory(device: torch.device, enough: int) -> int:
    """Return a GPU's free memory, bytes: what the allocator holds unused, and the device's unless that is ``enough``.

    Looked at in every call: it shrinks. The allocator answers sooner than the driver.
    """
    counts = torch.cuda.memory_stats_as_nested_dict(device)
    unused = counts["reserved_bytes"]["all"]["current"] - counts["allocated_bytes"]["all"]["current"]
    return unused if unused >= enough else unused + torch.cuda.mem_get_info(device)[0]
