"""Sums over the tokens of each sequence, padded or packed."""

import torch
from torch import Tensor

from humanline_fused.tokens import to_device


def sequence_sum(values: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """[B] sums of ``values``: [B, T] padded, or [1, N] packed with ``cu_seqlens`` [B + 1], also on the CPU."""
    if cu_seqlens is None:
        return values.sum(-1)
    return torch.segment_reduce(values[0], "sum", offsets=to_device(cu_seqlens, values.device).long())


def sequence_lengths(loss_mask: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """[B], float32: how many tokens of each sequence count."""
    return sequence_sum(loss_mask.float(), cu_seqlens)


def sequence_counts(loss_mask: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """[B], bool: which sequences have a token that counts."""
    return sequence_lengths(loss_mask, cu_seqlens) > 0
