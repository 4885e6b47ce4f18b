"""Target ids, mask and sequence boundaries of one call."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tokens:
    """
    Attributes:
        target_ids: [B, T], int64 or int32.
        counts: [B, T], bool: the loss mask, on the caller's device. On the CPU it is read without a wait.
        cu_seqlens: [num_sequences + 1] for packed input, or None; on the caller's device, as the mask.
        depends: a token's derivative depends on the log-probs of that token, of its sequence, or of its pair.
        gradient: [B, T], bool: False where the derivative is known to be 0; None if nothing is known.
    """

    target_ids: Tensor
    counts: Tensor
    cu_seqlens: Tensor | None = None
    depends: Literal["token", "sequence", "pair"] = "token"
    gradient: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.target_ids.device

    @property
    def loss_mask(self) -> Tensor:
        """[B, T], bool, on the device of the ids."""
        return self.counts.to(self.device, non_blocking=True)

    @property
    def boundaries(self) -> Tensor | None:
        """``cu_seqlens`` on the device of the ids."""
        return None if self.cu_seqlens is None else self.cu_seqlens.to(self.device, non_blocking=True)
