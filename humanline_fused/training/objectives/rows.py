"""Packed tokens [1, n] as padded rows [S, T], a sequence in each row."""

from collections.abc import Iterable

import torch
from torch import Tensor


def in_rows(values: Iterable[Tensor], cu_seqlens: Tensor, width: int | None = None) -> tuple[Tensor, ...]:
    """Return packed tensors as padded ones, with graphs.

    Args:
        values: [1, n] each.
        cu_seqlens: [S + 1], on the CPU.
        width: T; by default the length of the longest sequence, at least 1.

    Returns:
        [S, T] each, 0 behind the end of a sequence.

    >>> in_rows([torch.tensor([[1, 2, 3]])], torch.tensor([0, 2, 2, 3]))
    (tensor([[1, 2],
            [0, 0],
            [3, 0]]),)
    """
    lengths = cu_seqlens.diff()
    width = max([1, *lengths.tolist()]) if width is None else width
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
    places = sequence * width + torch.arange(len(sequence)) - cu_seqlens[sequence]

    def padded(packed: Tensor) -> Tensor:
        empty = packed.new_zeros(len(lengths) * width)
        index = places.to(packed.device, non_blocking=True)
        return empty.index_copy(0, index, packed[0]).view(len(lengths), width)

    return tuple(map(padded, values))
