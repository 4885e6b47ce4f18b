"""One row of tokens for many sequences, with each shared prefix once.

Causal attention gives the tokens of a common prefix the same hidden states in every sequence, so a model needs to
compute them once. The sequences form a radix tree: a *segment* is a run of tokens between two branchings, and a
sequence is the path from the root to its last token. The row holds the segments in depth-first order, so the segments
behind a segment follow it without a gap, and a path is a few slices of the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """A run of tokens in the row, ``[start, stop)``.

    Attributes:
        start, stop: its slice of the row.
        position: the position of its first token in each of its sequences; the context has as many tokens.
        context: the earlier segments that it attends to besides itself: their numbers, in the order of positions.
    """

    start: int
    stop: int
    position: int
    context: tuple[int, ...]


@dataclass(frozen=True)
class PrefixTree:
    """The input of one forward pass.

    Attributes:
        input_ids: [1, N], int64, on the CPU.
        position_ids: [1, N], int64: the position of each token in its sequences.
        segments: the segments in the order of the row.
        rows: per sequence, the index in the row of each of its tokens, [its length], int64.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: tuple[Segment, ...]
    rows: tuple[Tensor, ...]


def prefix_tree(sequences: Sequence[np.ndarray | Tensor]) -> PrefixTree:
    """Return one row that holds the tokens of all sequences, and each common prefix once.

    The last token of a sequence is needed only if its hidden state is: to score the tokens of a sequence, pass it
    without its last token.

    Args:
        sequences: token ids, 1-D, on the CPU. A sequence may be empty, not all.

    Raises:
        ValueError: no sequence has a token, or one is not 1-D.

    >>> tree = prefix_tree([np.array([5, 6, 7]), np.array([5, 6, 8, 9])])
    >>> tree.input_ids, tree.position_ids
    (tensor([[5, 6, 7, 8, 9]]), tensor([[0, 1, 2, 2, 3]]))
    >>> [(s.start, s.stop, s.context) for s in tree.segments]
    [(0, 2, ()), (2, 3, (0,)), (3, 5, (0,))]
    >>> tree.rows
    (tensor([0, 1, 2]), tensor([0, 1, 3, 4]))
    """
    ids = [np.ascontiguousarray(sequence, dtype=np.int64) for sequence in sequences]
    if any(sequence.ndim != 1 for sequence in ids):
        raise ValueError(f"expected sequences of one axis, got the shapes {[sequence.shape for sequence in ids]}")
    if not sum(map(len, ids)):
        raise ValueError(f"expected at least one token, got {len(ids)} empty sequences")
    root, ends = _radix_tree(ids)
    nodes, segments = _depth_first(root)
    row = np.concatenate([ids[node.sequence][node.start : node.stop] for node in nodes])
    positions = np.concatenate([np.arange(node.start, node.stop) for node in nodes])
    rows = tuple(
        torch.from_numpy(_indices([segments[number] for number in end.path])[: len(sequence)])
        for end, sequence in zip(ends, ids, strict=True)
    )
    return PrefixTree(torch.from_numpy(row)[None], torch.from_numpy(positions)[None], segments, rows)


@dataclass(eq=False)
class _Node:
    """Tokens ``[start, stop)`` of a sequence, and what follows them."""

    sequence: int
    start: int
    stop: int
    first: int  # the first of the sequences that pass through it
    children: list["_Node"] = field(default_factory=list)
    path: tuple[int, ...] = ()  # the segments from the root to its own


def _radix_tree(ids: list[np.ndarray]) -> tuple[_Node, list[_Node]]:
    """Return the root, whose run is empty, and for every sequence a node whose path begins with it."""
    keys = [sequence.tobytes() for sequence in ids]
    order = sorted(range(len(ids)), key=keys.__getitem__)  # sequences with a common prefix are neighbours
    path = [_Node(0, 0, 0, 0)]
    ends = path * len(ids)
    previous = ids[order[0]][:0]
    for number in order:
        sequence = ids[number]
        shared = _common_prefix(previous, sequence)
        below = None
        while path[-1].stop > shared:
            below = path.pop()
        if below is not None and shared > path[-1].stop:
            path.append(_split(path[-1], below, shared))
        last = path[-1]
        if len(sequence) > last.stop > 0 and not last.children:  # it begins with the previous one
            last.sequence, last.stop = number, len(sequence)
        elif len(sequence) > last.stop:
            path.append(_Node(number, last.stop, len(sequence), number))
            last.children.append(path[-1])
        for node in path:
            node.first = min(node.first, number)
        ends[number] = path[-1]
        previous = sequence
    return path[0], ends


def _split(parent: _Node, below: _Node, depth: int) -> _Node:
    """Cut ``below`` at ``depth`` and return its upper part, the new child of ``parent``."""
    upper = _Node(below.sequence, below.start, depth, below.first, [below])
    parent.children[parent.children.index(below)] = upper
    below.start = depth
    return upper


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def _depth_first(root: _Node) -> tuple[list[_Node], tuple[Segment, ...]]:
    """Place the nodes below the root in the row, those of earlier sequences first; return them and their segments."""
    nodes, segments = [], []
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is not root:
            start = segments[-1].stop if segments else 0
            segments.append(Segment(start, start + node.stop - node.start, node.start, node.path))
            node.path += (len(nodes),)
            nodes.append(node)
        node.children.sort(key=lambda child: child.first, reverse=True)
        for child in node.children:
            child.path = node.path
        waiting += node.children
    return nodes, tuple(segments)


def _indices(path: list[Segment]) -> np.ndarray:
    """Return the row indices of the tokens of some segments, int64."""
    return np.concatenate([np.arange(segment.start, segment.stop) for segment in path] or [np.arange(0)])
