"""Logits of a model's whole input, of which a batch scores only some rows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from humanline_fused.functional import token_logp, token_logp_and_entropy
from humanline_fused.scores import Logits
from humanline_fused.training.data.batch import Batch
from humanline_fused.types import TokenLogpOutput


@dataclass(frozen=True, eq=False)
class WholeLogits:
    """Logits [B, T, V] of the model's whole input.

    The log-probs are computed where the logits stand and then gathered: gathered logits would be a copy of them.
    """

    scores: Logits
    batch: Batch
    impl: Any

    def token_logp(self) -> Tensor:
        """Return the log-probs of the batch's tokens, [1, n], nats."""
        return self.gathered(token_logp(self.scores, *self.targets(), impl=self.impl))

    def token_logp_and_entropy(self) -> TokenLogpOutput:
        """Return the log-probs and the entropies of the batch's tokens, [1, n] each, nats."""
        out = token_logp_and_entropy(self.scores, *self.targets(), impl=self.impl)
        return TokenLogpOutput(self.gathered(out.logp), self.gathered(out.entropy))

    def targets(self) -> tuple[Tensor, Tensor]:
        """Return the target ids and the mask of the batch's tokens, [B, T] each."""
        source, shape = self.batch.source, self.scores.logits.shape[:2]
        mask = torch.zeros(shape.numel(), dtype=torch.bool).index_fill_(0, source, True)
        return self.spread(self.batch.target_ids), mask.view(shape)

    def spread(self, values: Tensor) -> Tensor:
        """Return values of the batch's tokens [1, n] where their logits stand, [B, T], and 0 elsewhere."""
        shape = self.scores.logits.shape[:2]
        source = self.batch.source.to(values.device, non_blocking=True)
        return values.new_zeros(shape.numel()).index_copy(0, source, values[0]).view(shape)

    def gathered(self, values: Tensor) -> Tensor:
        """Return values [B, T] of the batch's tokens, [1, n]."""
        return values.flatten()[self.batch.source.to(values.device, non_blocking=True)][None]
