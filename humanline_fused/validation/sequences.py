"""Checks of padded and packed sequences and of pairs."""

import torch
from torch import Tensor

from humanline_fused.validation import values
from humanline_fused.validation.values import check_dense, describe


def check_sequences(target_ids: Tensor, cu_seqlens: Tensor | None) -> int:
    """Return the number of sequences: rows of padded input, or segments between ``cu_seqlens`` in packed input."""
    if cu_seqlens is None:
        return target_ids.shape[0]
    check_dense("cu_seqlens: expected int32 or int64 [B + 1]", cu_seqlens)
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens: expected int32 or int64 [B + 1], got {describe(cu_seqlens)}")
    if cu_seqlens.shape[0] < 1 or cu_seqlens.device not in (target_ids.device, torch.device("cpu")):
        raise ValueError(f"cu_seqlens: expected [B + 1] on {target_ids.device} or the CPU, got {describe(cu_seqlens)}")
    if target_ids.shape[0] != 1:
        raise ValueError(f"cu_seqlens: expected ids of shape [1, N], got {list(target_ids.shape)}")
    if values.may_look_at(cu_seqlens):
        ends = cu_seqlens.tolist()
        if ends[0] != 0 or ends[-1] != target_ids.shape[1] or sorted(ends) != ends:
            raise ValueError(f"cu_seqlens: expected 0 to {target_ids.shape[1]}, non-decreasing, got {ends}")
    return cu_seqlens.shape[0] - 1


def nan_if_illegal(result: Tensor, cu_seqlens: Tensor | None, num_tokens: int) -> Tensor:
    """The result, NaN for ``cu_seqlens`` that :func:`check_sequences` would refuse if reading them were no wait."""
    if cu_seqlens is None or values.may_look_at(cu_seqlens):
        return result
    covers = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == num_tokens)
    legal = covers & (cu_seqlens.diff() >= 0).all()
    return result.where(legal.to(result.device), torch.nan)


def check_pairs(num_sequences: int) -> None:
    if num_sequences % 2:
        raise ValueError(
            "target_ids or cu_seqlens: expected an even number of sequences, the first half chosen and the second half "
            f"rejected, got {num_sequences}"
        )
