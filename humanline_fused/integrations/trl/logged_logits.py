"""Values of logits that TRL only logs, taken while a chunk of logits exists."""

import torch
from torch import Tensor

from humanline_fused.softmax import Epilogue, RowScores, Softmax

SLICE_BYTES = 2**24
"""Logits that a softcap is applied to at once."""


class LoggedLogits:
    """An epilogue that scores as another one does, and keeps what TRL logs of each row.

    Attributes:
        entropy: [n], nats.
        mean: [n]: mean of the logits over the vocabulary, after the model's scale and softcap.
        is_top1: [n], bool: the target is the first of the largest logits.
    """

    def __init__(self, epilogue: Epilogue, like: Tensor) -> None:
        self.epilogue, self.write_dlogits_ = epilogue, epilogue.write_dlogits_
        nothing = like.new_empty(0, dtype=torch.float32)
        self._parts = [(nothing, nothing, nothing.bool())]

    def score_rows(self, logits: Tensor, target_ids: Tensor, softmax: Softmax, with_entropy: bool) -> RowScores:
        scores = self.epilogue.score_rows(logits, target_ids, softmax, True)
        self._parts.append((scores.entropy, _mean(logits, softmax), logits.argmax(-1) == target_ids))
        return scores

    score_and_write_dlogits_ = Epilogue.score_and_write_dlogits_

    @property
    def entropy(self) -> Tensor:
        return torch.cat([entropy for entropy, _, _ in self._parts])

    @property
    def mean(self) -> Tensor:
        return torch.cat([mean for _, mean, _ in self._parts])

    @property
    def is_top1(self) -> Tensor:
        return torch.cat([is_top1 for _, _, is_top1 in self._parts])


def _mean(logits: Tensor, softmax: Softmax) -> Tensor:
    if softmax.softcap is None:
        return logits.mean(-1, dtype=torch.float32) * softmax.scale
    rows = max(1, SLICE_BYTES // (logits.shape[-1] * 4))
    return torch.cat([softmax.scores(part.float(), 1.0).mean(-1) for part in logits.split(rows)])
