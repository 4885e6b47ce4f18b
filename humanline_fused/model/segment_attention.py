"""Attention in a row of segments: each attends to its context and, causally, to itself.

There are two ways. *By blocks*: one call of torch's attention per block of queries, whose keys are a slice of the
segment's path, so that hidden keys are computed only within a block. *In one call* of torch's ``varlen_attn`` for all
segments, with their paths copied one behind the other: for half precision on a GPU, where many small calls are slow.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from humanline_fused.model.prefix_tree import PrefixTree, Segment, prefix_tree

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

# Queries of one call. Smaller blocks compute fewer hidden keys, in more calls. On a CPU, 64 to 192 take the same time,
# 10 to 20 % less than a segment of 600 tokens in one call.
BLOCK = 128


class Block(NamedTuple):
    """Queries of a segment, and keys that they see: both are numbers of positions in its path, the keys a slice."""

    queries: int
    first: int
    last: int


class SegmentAttention:
    """The attention of all layers with one window.

    Args:
        tree: the row.
        window: number of positions that a token sees, itself included, or None for all.
    """

    def __init__(self, tree: PrefixTree, window: int | None) -> None:
        self.window = window
        self.segments = tree.segments
        self.paths = [(*segment.context, number) for number, segment in enumerate(tree.segments)]
        self.lengths = [segment.stop - segment.start for segment in tree.segments]
        self.blocks = [_blocks(segment, window) for segment in tree.segments]
        self._made: dict[Any, Any] = {}  # tensors, by device and dtype

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
        """Return the attention of the row's tokens, [1, N, heads, head size].

        Args:
            query: [1, heads, N, head size].
            key, value: the same; they may have fewer heads, each for as many consecutive ones of the queries.
            scaling: factor of the scores, 1/√(head size) if None.
        """
        kind = query.device.type
        if torch.is_autocast_enabled(kind):
            query, key, value = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (query, key, value))
        attend = self.in_one_call if _varlen_applies(query, key, value) else self.by_blocks
        return attend(query, key, value, scaling)

    def by_blocks(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
        """Compute what a call of the object returns, block by block."""
        # split instead of slices, because the gradient of a slice is as large as the whole row
        queries = iter(query.split([block.queries for blocks in self.blocks for block in blocks], 2))
        keys, values = (tensor.split(self.lengths, 2) for tensor in (key, value))
        parts = []
        for path, blocks in zip(self.paths, self.blocks, strict=True):
            path_keys, path_values = (_joined([pieces[number] for number in path], 2) for pieces in (keys, values))
            for block in blocks:
                part = scaled_dot_product_attention(
                    next(queries),
                    path_keys[:, :, block.first : block.last],
                    path_values[:, :, block.first : block.last],
                    attn_mask=self._bias(block, query),
                    scale=scaling,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
                parts.append(part.transpose(1, 2))
        return torch.cat(parts, 1)

    def in_one_call(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
        """Compute what a call of the object returns, with torch's ``varlen_attn``."""
        assert varlen_attn is not None
        queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        paths = [number for path in self.paths for number in path]
        keys, values = (
            _joined([pieces[number] for number in paths], 0)
            for pieces in (tensor.split(self.lengths) for tensor in (keys, values))
        )
        widths = [segment.position + length for segment, length in zip(self.segments, self.lengths, strict=True)]
        starts_q, starts_k = self._starts(self.lengths, widths, device=query.device)
        result = varlen_attn(
            queries,
            keys,
            values,
            starts_q,
            starts_k,
            max(self.lengths),
            max(widths),
            scale=scaling,
            window_size=(-1 if self.window is None else self.window - 1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return cast(Tensor, result)[None]

    def tensor_mask(self, dtype: torch.dtype, device: Any) -> Tensor:
        """Return [1, 1, N, N], 0 where a token sees another, else the least finite number of the dtype."""
        sizes = sum(self.lengths)
        mask = torch.full((sizes, sizes), torch.finfo(dtype).min, dtype=dtype, device=device)
        for segment, path, length in zip(self.segments, self.paths, self.lengths, strict=True):
            hidden = self._hidden(length, segment.position + length, device)
            pieces = hidden.split([self.lengths[number] for number in path], 1)
            for number, piece in zip(path, pieces, strict=True):
                earlier = self.segments[number]
                mask[segment.start : segment.stop, earlier.start : earlier.stop].masked_fill_(~piece, 0.0)
        return mask[None, None]

    def _bias(self, block: Block, like: Tensor) -> Tensor:
        """Return [queries, keys] of a block, 0 or −inf: a slice of one matrix, whose diagonals are constant."""
        most = max(block.queries for blocks in self.blocks for block in blocks)
        before = max(segment.position + length for segment, length in zip(self.segments, self.lengths, strict=True))
        made = like.dtype, like.device
        if made not in self._made:
            hidden = self._hidden(most, before + most, like.device)
            self._made[made] = torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, -torch.inf)
        keys = block.last - block.first
        skipped = before - (keys - block.queries)
        bias = self._made[made][: block.queries, skipped : skipped + keys]
        return bias if like.device.type == "cpu" else bias.contiguous()  # kernels on a GPU read aligned rows

    def _hidden(self, queries: int, keys: int, device: Any) -> Tensor:
        """Return [queries, keys], True where a query does not see a key; the last ones are of the same token."""
        distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
        return (distance < 0) | (distance >= (self.window or keys))

    def _starts(self, *lengths: list[int], device: torch.device) -> list[Tensor]:
        """Return the sums of the lengths before each, and the whole sum, int32 on a device, without waiting for it."""
        if device not in self._made:
            starts = [torch.tensor([0, *accumulate(part)], dtype=torch.int32) for part in lengths]
            if device.type == "cuda":
                starts = [part.pin_memory() for part in starts]
            self._made[device] = [part.to(device, non_blocking=True) for part in starts]
        return self._made[device]


def _blocks(segment: Segment, window: int | None) -> list[Block]:
    """Cut a segment into the fewest blocks of about the same size."""
    length = segment.stop - segment.start
    number = -(-length // BLOCK)
    ends = [length * part // number for part in range(number + 1)]
    blocks = []
    for start, stop in pairwise(ends):
        first = 0 if window is None else max(segment.position + start + 1 - window, 0)
        blocks.append(Block(stop - start, first, segment.position + stop))
    return blocks


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _varlen_applies(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if not query.is_cuda or varlen_attn is None:
        return False
    half = query.dtype == key.dtype == value.dtype and query.dtype in (torch.bfloat16, torch.float16)
    same = query.shape[-1] == key.shape[-1] == value.shape[-1]
    return half and same and _varlen_agrees(query.device, query.dtype, query.shape[1], *key.shape[1::2])


@lru_cache
def _varlen_agrees(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int) -> bool:
    """Return whether ``varlen_attn`` gives the results and gradients of blocks within rounding, on random numbers."""
    tree = prefix_tree([np.array([0] * 20 + [i] * n) for i, n in enumerate((9, 17, 5), 1)])
    number = tree.input_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, n, number, size, generator=generator).to(device, dtype) for n in (heads, key_heads, key_heads)
    ]
    for window in (None, 7):
        attention = SegmentAttention(tree, window)
        try:
            one = _with_gradients(attention.in_one_call, inputs)
        except (RuntimeError, TypeError, ValueError):  # an older function, or a GPU without it
            return False
        other = _with_gradients(attention.by_blocks, [part.float() for part in inputs])
        pairs = zip(one, other, strict=True)
        if any((a.float() - b).norm() > 4 * torch.finfo(dtype).eps * b.norm() for a, b in pairs):
            return False
    return True


def _with_gradients(attend: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        inputs = [part.clone().requires_grad_() for part in inputs]
        result = attend(*inputs)
        return [result, *torch.autograd.grad(result.square().sum(), inputs)]
