"""The float64 answer at full size: a few rows of logits at a time, so that no [B, T, V] is ever held in float64."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Batch, Case, Mode
from benchmarks.providers import Answer, upstream
from humanline_fused import HumanlineClamp, TokenLogp, dpo_loss, grpo_loss, kto_loss

CHUNK_BYTES = {"cpu": 2**24}


class Oracle:
    """
    Attributes:
        value: ``logp`` [B, T] or the loss [], float64.
        dlogp: [B, T], float64; None in mode ``nograd``.
    """

    def __init__(self, case: Case, mode: Mode, batch: Batch) -> None:
        self.case, self.batch = case, batch
        with torch.no_grad():
            logp = self._log_probs(batch.logits)
            ref_logp = self._log_probs(batch.ref_logits) if case.has_reference else None
        logp.requires_grad_(mode == "full")
        value = logp if ref_logp is None else self._loss(logp, ref_logp)
        self.dlogp: Tensor | None = None
        if mode == "full":
            (dlogp,) = torch.autograd.grad(value, logp, upstream(case, value, batch))
            self.dlogp = dlogp * batch.loss_mask
        self.value = value.detach()

    def errors(self, answer: Answer) -> tuple[float, float | None]:
        """``‖actual − oracle‖ / ‖oracle‖`` of the value and of dlogits, of which the larger of two: in the targets'
        columns and in all others, each beside its own norm. The targets' would hide the others at a large V."""
        value, dlogits = answer
        value_error = ((value.double() - self.value).norm() / self.value.norm()).item()
        if self.dlogp is None or dlogits is None:
            return value_error, None
        differences, sizes = self.value.new_zeros(2), self.value.new_zeros(2)
        for rows, logits, ids in self._chunks(self.batch.logits):
            logits.requires_grad_()
            (oracle,) = torch.autograd.grad(self._score(logits, ids), logits, self.dlogp.flatten()[rows])
            differences += _squares(dlogits.flatten(0, 1)[rows].double() - oracle, ids)
            sizes += _squares(oracle, ids)
        return value_error, (differences / sizes).sqrt().max().item()

    def _chunks(self, logits: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        every_row, ids = logits.detach().flatten(0, 1), self.batch.target_ids.flatten()
        num_rows = max(1, CHUNK_BYTES.get(logits.device.type, 2**28) // (8 * logits.shape[-1]))
        for start in range(0, len(every_row), num_rows):
            rows = slice(start, start + num_rows)
            yield rows, every_row[rows].double(), ids[rows]

    def _score(self, logits: Tensor, ids: Tensor) -> Tensor:
        if self.case.softcap:
            logits = self.case.softcap * torch.tanh(logits / self.case.softcap)
        return logits.log_softmax(-1).gather(-1, ids.long()[:, None])[:, 0]

    def _log_probs(self, logits: Tensor) -> Tensor:
        logp = torch.cat([self._score(chunk, ids) for _, chunk, ids in self._chunks(logits)])
        return logp.view(self.batch.loss_mask.shape).where(self.batch.loss_mask, 0)

    def _loss(self, logp: Tensor, ref_logp: Tensor) -> Tensor:
        policy, reference, batch = TokenLogp(logp), TokenLogp(ref_logp), self.batch
        ids, mask = batch.target_ids, batch.loss_mask
        clamp = HumanlineClamp(-self.case.log_epsilon, self.case.log_epsilon)
        settings: dict[str, Any] = {"clamp": clamp, **self.case.settings}
        match self.case.operation:
            case "dpo":
                return dpo_loss(policy, reference, ids, mask, **settings).loss
            case "kto":
                return kto_loss(policy, reference, ids, mask, batch.desirable, **settings).loss
            case "grpo":
                advantages = batch.advantages.double()
                return grpo_loss(policy, reference, ids, mask, advantages, **settings).loss
        raise KeyError(self.case.operation)


def _squares(rows: Tensor, ids: Tensor) -> Tensor:
    """[2]: summed over the targets' columns, and over all others."""
    squares, targets = rows.square(), ids.long()[:, None]
    return torch.stack([squares.gather(-1, targets).sum(), squares.scatter(-1, targets, 0).sum()])
