"""The tokens that a loss is of, in the ways in which its parts ask for them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tokens:
    """
    Attributes:
        target_ids: [B, T], int64 or int32.
        counts: [B, T], bool: the loss mask as it came. On the CPU it can be looked at without waiting for a device.
        cu_seqlens: [num_sequences + 1] of packed input, or None.
        depends: the tokens on whose log-probs a token's derivative depends: itself alone, its sequence, or its pair.
        gradient: [B, T], bool: False where the derivative is known to be 0; None where nothing is known.
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
        """[B, T], bool, beside the ids."""
        return self.counts.to(self.device, non_blocking=True)
