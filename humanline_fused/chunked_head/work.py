"""Settings of one call, apart from the tensors that autograd tracks."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from humanline_fused.chunked_head.chunks import Rows, capacity_of
from humanline_fused.chunked_head.products import float32_or_wider
from humanline_fused.chunked_head.shards import Shards
from humanline_fused.scores import LMHead
from humanline_fused.softmax import Epilogue, Softmax, softmax_of
from humanline_fused.tokens import Tokens


class Needs(NamedTuple):
    """True for each input that needs a gradient."""

    hidden: bool
    weight: bool
    bias: bool

    @property
    def head(self) -> bool:
        return self.weight or self.bias


def needs_of(head: LMHead) -> Needs:
    # Called outside of autograd.Function: inside, grad mode is off, and needs_input_grad is True under no_grad.
    on = torch.is_grad_enabled()
    return Needs(*(on and t is not None and t.requires_grad for t in (head.hidden, head.weight, head.bias)))


@dataclass(frozen=True, eq=False)
class Work:
    """
    Attributes:
        shape: [B, T].
        rows: rows of the policy; a reference with the same head has the same rows, before them.
        target_ids: [B · T].
        softmax: with a temperature of shape [B · T], or None.
        dtype: dtype of the factors of the products.
        capacity: rows of logits that are held at once.
        main_grad: the tensor to which the weight's gradient is added, or None to return the gradient.
    """

    epilogue: Epilogue
    shape: torch.Size
    rows: Rows
    target_ids: Tensor
    softmax: Softmax
    with_entropy: bool
    needs: Needs
    dtype: torch.dtype
    logits_dtype: torch.dtype
    capacity: int
    main_grad: Tensor | None
    drop_clamped: bool

    @property
    def accumulation(self) -> torch.dtype:
        return float32_or_wider(self.dtype)

    def empty_logits(self, rows: int, vocabulary: int) -> Tensor:
        """[rows, V]; every row begins on a 16-byte boundary, for fast products and loads."""
        width = _padded(vocabulary, self.logits_dtype)
        return self.target_ids.new_empty(rows, width, dtype=self.logits_dtype)[:, :vocabulary]


def _padded(vocabulary: int, dtype: torch.dtype) -> int:
    vector = max(1, 16 // dtype.itemsize)
    return -(-vocabulary // vector) * vector


def work_of(epilogue: Epilogue, head: LMHead, rows: Rows, tokens: Tokens, with_entropy: bool = False) -> Work:
    hidden, needs, softmax = head.hidden, needs_of(head), softmax_of(head)
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(hidden.device.type)
    if softmax.temperature is not None:
        softmax = softmax._replace(temperature=softmax.temperature.flatten())
    logits_dtype = float32_or_wider(dtype) if head.fp32_logits else dtype
    row_bytes = _padded(len(head.weight), logits_dtype) * logits_dtype.itemsize
    if logits_dtype != dtype:
        row_bytes += len(head.weight) * dtype.itemsize  # the copy of dlogits that is rounded for the products
    capacity = capacity_of(head.workspace_bytes, row_bytes, hidden.device)
    if head.group is not None:
        epilogue = Shards(epilogue, head.group, len(head.weight), hidden.device)
        capacity = epilogue.smallest(capacity)
    return Work(
        epilogue=epilogue,
        shape=tokens.target_ids.shape,
        rows=rows,
        target_ids=tokens.target_ids.flatten(),
        softmax=softmax,
        with_entropy=with_entropy,
        needs=needs,
        dtype=dtype,
        logits_dtype=logits_dtype,
        capacity=capacity,
        main_grad=getattr(head.weight, "main_grad") if head.main_grad and needs.weight else None,  # noqa: B009
        drop_clamped=head.drop_clamped,
    )
