"""Sums over the tokens of each sequence, padded or packed."""

from typing import Any

import torch
from torch import Tensor

from humanline_fused.tokens import sequence_of, to_device
from humanline_fused.validation import values


class SequenceSum(torch.autograd.Function):
    """``torch.segment_reduce`` of values [N]; unlike it, twice differentiable."""

    @staticmethod
    def forward(tokens: Tensor, offsets: Tensor) -> Tensor:
        return torch.segment_reduce(tokens, "sum", offsets=offsets)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        tokens, offsets = inputs
        ctx.num_tokens = len(tokens)
        ctx.save_for_backward(offsets)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (offsets,) = ctx.saved_tensors
        return grad_outputs[0][sequence_of(torch.arange(ctx.num_tokens, device=offsets.device), offsets)], None


def sequence_sum(tokens: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """[B] sums of ``tokens``: [B, T] padded, or [1, N] packed with ``cu_seqlens`` [B + 1], also on the CPU."""
    if cu_seqlens is None:
        return tokens.sum(-1)
    offsets = to_device(cu_seqlens, tokens.device).long()
    if not values.may_look_at(cu_seqlens):  # not checked: no memory may be read outside of the tokens
        offsets = offsets.clamp(0, tokens.shape[1]).cummax(0).values
    return SequenceSum.apply(tokens[0], offsets)


def sequence_lengths(loss_mask: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """[B], float32: how many tokens of each sequence count."""
    return sequence_sum(loss_mask.float(), cu_seqlens)


def sequence_counts(loss_mask: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """[B], bool: which sequences have a token that counts."""
    return sequence_lengths(loss_mask, cu_seqlens) > 0
