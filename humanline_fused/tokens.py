"""Target ids, mask and sequence boundaries of one call."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``. The host does not wait for a copy of its own memory: it goes through pinned memory."""
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and device.type == "cuda" and not torch.compiler.is_compiling():
        tensor = tensor.pin_memory()
    # The host could read a copy in its own memory before it is complete.
    return tensor.to(device, non_blocking=device.type != "cpu")


def sequence_of(positions: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The packed sequence that each position is in, an index that is legal whatever the boundaries are."""
    ends = to_device(cu_seqlens, positions.device).long()[1:-1]
    return torch.searchsorted(ends, positions, right=True)


@dataclass(frozen=True, eq=False)
class Tokens:
    """
    Attributes:
        target_ids: [B, T], int64 or int32.
        counts: [B, T], bool: the loss mask, on the caller's device. On the CPU it is read without a wait.
        cu_seqlens: [num_sequences + 1] for packed input, or None; on the caller's device, as the mask.
        depends: a token's derivative depends on the log-probs of that token, of its sequence, or of its pair.
        gradient: [B, T], bool: False where the derivative is known to be 0; None if nothing is known.
        loss_mask: [B, T], bool: ``counts`` on the device of the ids.
    """

    target_ids: Tensor
    counts: Tensor
    cu_seqlens: Tensor | None = None
    depends: Literal["token", "sequence", "pair"] = "token"
    gradient: Tensor | None = None
    loss_mask: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss_mask", to_device(self.counts, self.device))

    @property
    def device(self) -> torch.device:
        return self.target_ids.device

    @property
    def boundaries(self) -> Tensor | None:
        """``cu_seqlens`` on the device of the ids."""
        return None if self.cu_seqlens is None else to_device(self.cu_seqlens, self.device)
