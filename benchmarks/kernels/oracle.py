"""The float64 answer at full size: a few rows of logits at a time, so that no [B, T, V] is ever held in float64."""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from benchmarks.kernels.cases import Case, Inputs, Mode
from benchmarks.kernels.head import HeadBatch, HeadCase
from benchmarks.kernels.logits import Batch
from benchmarks.kernels.providers import Answer, upstream
from humanline_fused import HumanlineClamp, TokenLogp, dpo_loss, grpo_loss, kto_loss

CHUNK_BYTES = {"cpu": 2**24}

Kind = TypeVar("Kind", bound=Inputs)


class Oracle(Generic[Kind]):
    """
    Attributes:
        value: ``logp`` [B, T] or the loss [], float64.
        dlogp: [B, T], float64; None in mode ``nograd``.
    """

    def __init__(self, case: Case, mode: Mode, batch: Kind) -> None:
        self.case, self.batch = case, batch
        with torch.no_grad():
            logp = self._log_probs(reference=False)
            ref_logp = self._reference_log_probs() if case.has_reference else None
        logp.requires_grad_(mode != "nograd")
        value = logp if ref_logp is None else self._loss(logp, ref_logp)
        self.dlogp: Tensor | None = None
        if mode != "nograd":
            (dlogp,) = torch.autograd.grad(value, logp, upstream(case, value, batch))
            self.dlogp = dlogp * batch.loss_mask
        self.value = value.detach()

    def errors(self, answer: Answer) -> tuple[float, float | None]:
        """``‖actual − oracle‖ / ‖oracle‖`` of the value, and the largest of the gradients'."""
        value, gradients = answer
        value_error = ((value.double() - self.value).norm() / self.value.norm()).item()
        if self.dlogp is None or not gradients:
            return value_error, None
        return value_error, self._gradient_error(gradients, self.dlogp.flatten())

    def _logits(self, rows: slice, reference: bool) -> Tensor:
        """[n, V], float64, of rows of the flat batch."""
        raise NotImplementedError

    def _gradient_error(self, gradients: tuple[Tensor, ...], dlogp: Tensor) -> float:
        raise NotImplementedError

    def _reference_log_probs(self) -> Tensor:
        return self._log_probs(reference=True)

    def _rows(self) -> Iterator[slice]:
        V, num_rows = self.batch.shape["V"], self.batch.loss_mask.numel()
        size = max(1, CHUNK_BYTES.get(self.batch.scores.device.type, 2**28) // (8 * V))
        for start in range(0, num_rows, size):
            yield slice(start, start + size)

    def _ids(self, rows: slice) -> Tensor:
        return self.batch.target_ids.flatten()[rows].long()

    def _log_probs(self, *, reference: bool) -> Tensor:
        logp = torch.cat([self._score(self._logits(rows, reference), self._ids(rows)) for rows in self._rows()])
        return logp.view(self.batch.loss_mask.shape).where(self.batch.loss_mask, 0)

    def _score(self, logits: Tensor, ids: Tensor) -> Tensor:
        if self.case.softcap:
            logits = self.case.softcap * torch.tanh(logits / self.case.softcap)
        return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]

    def _dlogits(self, rows: slice, dlogp: Tensor) -> Tensor:
        """[n, V], float64."""
        logits = self._logits(rows, reference=False).requires_grad_()
        (dlogits,) = torch.autograd.grad(self._score(logits, self._ids(rows)), logits, dlogp[rows])
        return dlogits

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


class LogitsOracle(Oracle[Batch]):
    """Its gradient's error is the larger of two, in the targets' columns and in all others, each beside its own norm:
    the targets' would hide the others at a large V."""

    def _logits(self, rows: slice, reference: bool) -> Tensor:
        logits = self.batch.ref_logits if reference else self.batch.logits
        return logits.detach().flatten(0, 1)[rows].double()

    def _gradient_error(self, gradients: tuple[Tensor, ...], dlogp: Tensor) -> float:
        (dlogits,) = gradients
        differences, sizes = self.value.new_zeros(2), self.value.new_zeros(2)
        for rows in self._rows():
            oracle, ids = self._dlogits(rows, dlogp), self._ids(rows)
            differences += _squares(dlogits.flatten(0, 1)[rows].double() - oracle, ids)
            sizes += _squares(oracle, ids)
        return (differences / sizes).sqrt().max().item()


class HeadOracle(Oracle[HeadBatch]):
    """Its gradient's error is the largest of three: of dhidden, and of dweight in the targets' rows and in all others,
    each beside its own norm."""

    def __init__(self, case: HeadCase, mode: Mode, batch: HeadBatch) -> None:
        self.given, self.weight = case.given, batch.weight.double()
        super().__init__(case, mode, batch)
        if self.dlogp is not None:
            self.dhidden, self.dweight = self._gradients(self.dlogp.flatten())

    def _logits(self, rows: slice, reference: bool) -> Tensor:
        hidden = self.batch.ref_hidden if reference else self.batch.hidden
        weight = self.ref_weight if reference else self.weight
        return hidden.flatten(0, 1)[rows].double() @ weight.T

    def _reference_log_probs(self) -> Tensor:
        if self.given:
            return self.batch.ref_logp.double()
        self.ref_weight = self.batch.ref_weight.double()
        ref_logp = super()._reference_log_probs()
        del self.ref_weight
        return ref_logp

    def _gradients(self, dlogp: Tensor) -> tuple[Tensor, Tensor]:
        """dhidden [B·T, H] and dweight [V, H], float64."""
        hidden = self.batch.hidden.flatten(0, 1)
        dhidden = torch.empty_like(hidden, dtype=torch.float64)
        dweight = torch.zeros_like(self.weight)
        for rows in self._rows():
            dlogits = self._dlogits(rows, dlogp)
            dhidden[rows] = dlogits @ self.weight
            dweight.addmm_(dlogits.T, hidden[rows].double())
        return dhidden, dweight

    def _gradient_error(self, gradients: tuple[Tensor, ...], dlogp: Tensor) -> float:
        dhidden, *dweight = gradients
        error = (dhidden.flatten(0, 1).double() - self.dhidden).norm() / self.dhidden.norm()
        if not dweight:
            return error.item()
        targets = torch.zeros(len(self.weight), dtype=torch.bool, device=self.weight.device)
        targets[self.batch.target_ids[self.batch.loss_mask]] = True
        differences = (dweight[0].double() - self.dweight).square_().sum(-1)
        sizes = self.dweight.square().sum(-1)
        errors = [(differences[rows].sum() / sizes[rows].sum()).sqrt() for rows in (targets, ~targets) if rows.any()]
        return torch.stack([error, *errors]).max().item()


def oracle(case: Case, mode: Mode, batch: Any) -> Oracle[Any]:
    """Of the case's kind."""
    return HeadOracle(case, mode, batch) if isinstance(case, HeadCase) else LogitsOracle(case, mode, batch)


def _squares(rows: Tensor, ids: Tensor) -> Tensor:
    """[2]: summed over the targets' columns, and over all others."""
    squares, targets = rows.square(), ids[:, None]
    return torch.stack([squares.gather(-1, targets).sum(), squares.scatter(-1, targets, 0).sum()])
