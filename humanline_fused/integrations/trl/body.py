"""The tokens of a batch as the model gets them: TRL's padded rows, or one row in which sequences share prompts."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from humanline_fused.model.prefix_tree import prefix_tree
from humanline_fused.model.tree_attention import attending_by

TEXT = {"input_ids", "attention_mask", "use_cache"}
"""The inputs of a row with shared prompts; others belong to padded rows."""


class Body(NamedTuple):
    """The input of a forward pass.

    Attributes:
        inputs: arguments of the model's forward.
        source: [n], int64: for each target, the index of the hidden state that scores it, among all of the body's.
        attention: a context for the forward pass.
    """

    inputs: dict[str, Any]
    source: Tensor
    attention: Callable[[], AbstractContextManager[Any]] = nullcontext


def padded(inputs: dict[str, Any], into: Tensor) -> Body:
    """Return TRL's padded rows as they are.

    Args:
        inputs: of the model, with ``input_ids`` [B, T].
        into: [n], int64: the targets, as indices of [B, T - 1]; the target at ``[b, t]`` is the token ``[b, t + 1]``.
    """
    width = max(inputs["input_ids"].shape[1] - 1, 1)
    return Body(inputs, into + into // width)


def shared_prompt(inputs: dict[str, Any], into: Tensor) -> Body:
    """Return one row without padding, in which each common prefix stands once; arguments as for :func:`padded`.

    Tokens behind the last target's predecessor are left out: nothing needs their hidden states.

    Raises:
        ValueError: the model gets other inputs than text, or a token that it needs is masked (padding on the left).
    """
    others = inputs.keys() - TEXT
    if others:
        raise ValueError(f"the model gets {', '.join(sorted(others))} with its tokens")
    ids = inputs["input_ids"]
    row, column = into // max(ids.shape[1] - 1, 1), into % max(ids.shape[1] - 1, 1)
    needed = torch.zeros(len(ids), dtype=torch.int64).scatter_reduce_(0, row.cpu(), column.cpu() + 1, "amax")
    mask = inputs.get("attention_mask")
    if mask is not None and not (mask.cpu().bool() | (torch.arange(ids.shape[1]) >= needed[:, None])).all():
        raise ValueError("a batch is padded on the left")
    if not needed.any():
        return padded(inputs, into)
    tree = prefix_tree([sequence[:length] for sequence, length in zip(ids.cpu(), needed.tolist(), strict=True)])
    starts = needed.cumsum(0) - needed
    source = torch.cat(tree.rows)[starts[row.cpu()] + column.cpu()]
    given = {"input_ids": tree.input_ids, "position_ids": tree.position_ids}
    moved = {name: tensor.to(ids.device, non_blocking=True) for name, tensor in given.items()}
    return Body(moved | {"use_cache": False}, source.to(ids.device, non_blocking=True), lambda: attending_by(tree))
