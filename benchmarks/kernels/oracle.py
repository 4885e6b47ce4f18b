"""The float64 answer at full size: a few rows of logits at a time, so that no [B, T, V] is ever held in float64."""

import functools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.batches import AnyBatch, HeadBatch
from benchmarks.kernels.cases import Case, Mode
from benchmarks.kernels.providers import Answer
from humanline_fused import TokenLogp

CHUNK_BYTES = {"cpu": 2**24}


class Oracle:
    def __init__(self, case: Case, mode: Mode, batch: AnyBatch) -> None:
        self.case, self.batch = case, batch
        self.scores = _with_float64_weight(batch.policy)
        with torch.no_grad():
            logp = self._log_probs(self.scores)
            ref_logp = self._reference_log_probs() if case.has_reference else None
        logp.requires_grad_(mode != "nograd")
        in_float64 = replace(batch, advantages=batch.advantages.double())
        if ref_logp is None:
            value = case.of_log_probs(logp, batch)
        else:
            value = case.loss(TokenLogp(logp), TokenLogp(ref_logp), in_float64)
        self.dlogp: Tensor | None = None  # [B, T], float64
        if mode != "nograd":
            (dlogp,) = torch.autograd.grad(value, logp, case.upstream(value, batch))
            self.dlogp = dlogp * batch.loss_mask
        self.value = value.detach()  # logp [B, T] or the loss [], float64

    def errors(self, answer: Answer) -> tuple[float, float | None]:
        """``‖actual − oracle‖ / ‖oracle‖`` of the value, and the largest of those of the gradients' parts.

        dlogits and dweight have two parts: the targets' columns (rows of the weight) and all others. Each is compared
        beside its own norm: at a large V the targets' would hide the others.
        """
        value, gradients = answer
        value_error = ((value.double() - self.value).norm() / self.value.norm()).item()
        if self.dlogp is None or not gradients:
            return value_error, None
        if isinstance(self.batch, HeadBatch):
            return value_error, self._head_error(*gradients)
        return value_error, self._dlogits_error(*gradients)

    def _rows(self) -> Iterator[slice]:
        V, num_rows = self.batch.shape["V"], self.batch.loss_mask.numel()
        size = max(1, CHUNK_BYTES.get(self.batch.loss_mask.device.type, 2**28) // (8 * V))
        for start in range(0, num_rows, size):
            yield slice(start, start + size)

    def _ids(self, rows: slice) -> Tensor:
        return self.batch.target_ids.flatten()[rows].long()

    def _reference_log_probs(self) -> Tensor:
        if isinstance(self.batch, HeadBatch) and self.case.given:
            return self.batch.ref_logp.double()
        return self._log_probs(_with_float64_weight(self.batch.reference))

    def _log_probs(self, scores: tuple[Tensor, ...]) -> Tensor:
        logp = torch.cat([self._score(_logits(scores, rows), self._ids(rows)) for rows in self._rows()])
        return logp.view(self.batch.loss_mask.shape).where(self.batch.loss_mask, 0)

    def _score(self, logits: Tensor, ids: Tensor) -> Tensor:
        if self.case.softcap:
            logits = self.case.softcap * torch.tanh(logits / self.case.softcap)
        return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]

    def _dlogits(self, rows: slice) -> Tensor:
        """[n, V], float64."""
        assert self.dlogp is not None
        logits = _logits(self.scores, rows).requires_grad_()
        (dlogits,) = torch.autograd.grad(self._score(logits, self._ids(rows)), logits, self.dlogp.flatten()[rows])
        return dlogits

    def _dlogits_error(self, dlogits: Tensor) -> float:
        differences, sizes = self.value.new_zeros(2), self.value.new_zeros(2)
        for rows in self._rows():
            oracle, ids = self._dlogits(rows), self._ids(rows)
            differences += _squares(dlogits.flatten(0, 1)[rows].double() - oracle, ids)
            sizes += _squares(oracle, ids)
        return (differences / sizes).sqrt().max().item()

    @functools.cached_property
    def _head_gradients(self) -> tuple[Tensor, Tensor]:
        """dhidden [B·T, H] and dweight [V, H], float64."""
        hidden, weight = self.scores
        hidden = hidden.flatten(0, 1)
        dhidden, dweight = torch.empty_like(hidden, dtype=torch.float64), torch.zeros_like(weight)
        for rows in self._rows():
            dlogits = self._dlogits(rows)
            dhidden[rows] = dlogits @ weight
            dweight.addmm_(dlogits.T, hidden[rows].double())
        return dhidden, dweight

    def _head_error(self, dhidden: Tensor, dweight: Tensor | None = None) -> float:
        of_hidden, of_weight = self._head_gradients
        error = (dhidden.flatten(0, 1).double() - of_hidden).norm() / of_hidden.norm()
        if dweight is None:
            return error.item()
        targets = torch.zeros(len(of_weight), dtype=torch.bool, device=of_weight.device)
        targets[self.batch.target_ids[self.batch.loss_mask]] = True
        differences, sizes = (dweight.double() - of_weight).square_().sum(-1), of_weight.square().sum(-1)
        errors = [(differences[rows].sum() / sizes[rows].sum()).sqrt() for rows in (targets, ~targets) if rows.any()]
        return torch.stack([error, *errors]).max().item()


def _with_float64_weight(scores: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    first, *weight = scores
    return first.detach(), *(tensor.detach().double() for tensor in weight)


def _logits(scores: tuple[Tensor, ...], rows: slice) -> Tensor:
    """[n, V], float64, of rows of the flat batch."""
    first, *weight = scores
    of_rows = first.flatten(0, 1)[rows].double()
    return of_rows @ weight[0].T if weight else of_rows


def _squares(rows: Tensor, ids: Tensor) -> Tensor:
    """[2]: summed over the targets' columns, and over all others."""
    squares, targets = rows.square(), ids[:, None]
    return torch.stack([squares.gather(-1, targets).sum(), squares.scatter(-1, targets, 0).sum()])
