"""Targets of the rows of a causal model's logits."""

import torch
from torch import Tensor

from humanline_fused import validation
from humanline_fused.tokens import to_device


def shift_targets(input_ids: Tensor, mask: Tensor, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The targets of a causal model's rows: row ``[b, t]`` of its logits scores ``input_ids[b, t + 1]``.

    Shifting the ids is free. Shifting the logits (``logits[:, :-1]``) is right too, but its backward writes a second
    [B, T, V] tensor and passes three more times over it.

    Args:
        input_ids: [B, T], integer.
        mask: [B, T], bool: which ids a loss counts (a completion's tokens, without prompt and padding).
        cu_seqlens: [B + 1], int32 or int64, for packed input [1, N]: where its sequences begin and end; on the device
            of the ids, or on the CPU.

    Returns:
        ``target_ids`` and ``loss_mask``, one to the left; the last token of a sequence scores none and does not count.

    >>> shift_targets(torch.tensor([[5, 6, 7]]), torch.tensor([[False, True, True]]))
    (tensor([[6, 7, 5]]), tensor([[ True,  True, False]]))
    """
    validation.check_ids("input_ids", input_ids)
    validation.check_tensor("mask", mask, input_ids.shape, (torch.bool,), input_ids.device)
    validation.check_sequences(input_ids, cu_seqlens)
    loss_mask = mask.roll(-1, dims=1)
    loss_mask[:, -1:] = False
    if cu_seqlens is not None and input_ids.shape[1]:
        loss_mask[:, to_device(cu_seqlens[1:], loss_mask.device).long() - 1] = False
    return input_ids.roll(-1, dims=1), loss_mask
