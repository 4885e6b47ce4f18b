"""hidden -> a loss whose derivative in the log-probs is known as soon as they are: 3 products with a trained head.

The coefficients do not scale the logits. Each chunk's dlogits are computed for coefficients of 1, and the coefficients
scale factors with H columns. So only the weight's gradient waits for them (docs/math.md, equation 16).
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple

import torch
from torch import Tensor

from humanline_fused.chunked_head.chunks import Chunk
from humanline_fused.chunked_head.gradients import (
    HeadGradients,
    HeadTotals,
    hidden_gradient,
    product_with_weight,
    refuse_double_backward,
    weight_gradient,
    weight_gradient_of_chunk,
)
from humanline_fused.chunked_head.products import column_sums
from humanline_fused.chunked_head.sweep import Index, Sweep, selected
from humanline_fused.chunked_head.work import Work
from humanline_fused.layer import Result, ScoredLoss
from humanline_fused.softmax import RowScores


class Call(NamedTuple, Generic[Result]):
    """Arguments of one call that need no gradient.

    Attributes:
        differentiated: from log-probs of policy and reference, [B, T], to the loss and its derivative in the policy's.
        ref_logp: [B, T] of the reference, or None if ``ref_hidden`` goes through the same head.
        ref_hidden: [B, T, H] of a reference with the same head, or None.
    """

    work: Work
    differentiated: Callable[[Tensor, Tensor], tuple[Result, Tensor]]
    ref_logp: Tensor | None
    ref_hidden: Tensor | None


class Kept(NamedTuple):
    """Tensors that forward keeps for backward, of the n rows with a gradient.

    Attributes:
        positions: [n], int64, in [0, B · T).
        coefficient: ∂loss/∂logp of the rows, [n].
        dlogits: [n, V] for coefficients of 1, if one chunk holds all rows. Else None, and the next three are there.
        dhidden: dlogits · weight, [n, H].
        weight, bias: the gradients of the head, summed over chunks.
    """

    positions: Tensor
    coefficient: Tensor
    dlogits: Tensor | None = None
    dhidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


class HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call[Result], hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, ScoredLoss[Result]]:
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = _Forward(call, hidden, weight, bias)
            logp, ref_logp = chunks.log_probs()
            # Without a row that has a gradient no derivative was asked for.
            result = call.differentiated(logp, ref_logp)[0] if chunks.result is None else chunks.result
        ctx.set_materialize_grads(False)
        ctx.work = call.work
        ctx.save_for_backward(hidden, weight, bias, *chunks.kept())
        # Autograd tracks the first output. The second is not a tensor, so it comes out as it is, detached.
        return result.loss, ScoredLoss(result, logp, ref_logp)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        grad_output = grad_outputs[0]
        if grad_output is None:
            return (None,) * 4
        hidden, weight, bias, *kept = ctx.saved_tensors
        kept = Kept(*kept)
        with torch.autocast(hidden.device.type, enabled=False):
            gradients = _gradients_of_totals if kept.dlogits is None else _gradients_of_chunk
            return None, *gradients(ctx.work, kept, grad_output, hidden, weight, bias)


def _gradients_of_chunk(
    work: Work, kept: Kept, grad_output: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> HeadGradients:
    """The gradients, if one chunk held all rows: the products with its dlogits are done here."""
    dlogits = kept.dlogits
    assert dlogits is not None
    dlogp = kept.coefficient * grad_output.to(kept.coefficient.dtype)
    dhidden = dweight = dbias = None
    if work.needs.hidden:
        dhidden = hidden_gradient(product_with_weight(work, dlogits, weight), dlogp, kept.positions, hidden)
    if work.needs.weight:
        rows = hidden.detach().flatten(0, 1)[kept.positions].to(work.dtype)
        dweight = weight_gradient_of_chunk(work, dlogits, rows, dlogp, weight)
    if bias is not None and work.needs.bias:
        dbias = column_sums(dlogits, dlogp).to(bias.dtype)
    return HeadGradients(dhidden, dweight, dbias)


def _gradients_of_totals(
    work: Work, kept: Kept, grad_output: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> HeadGradients:
    """The gradients, if the rows were in several chunks: all products are done."""
    dhidden = dweight = dbias = None
    if kept.dhidden is not None and work.needs.hidden:
        dlogp = kept.coefficient * grad_output.to(kept.coefficient.dtype)
        dhidden = hidden_gradient(kept.dhidden, dlogp, kept.positions, hidden)
    if kept.weight is not None:
        dweight = weight_gradient(work, kept.weight, grad_output, weight.dtype)
    if kept.bias is not None and bias is not None:
        dbias = (kept.bias * grad_output).to(bias.dtype)
    return HeadGradients(dhidden, dweight, dbias)


class _Forward(Generic[Result]):
    """The sweep over all chunks: scores, coefficients, and the products that do not wait for backward.

    Indices of rows with a gradient count from the first of these.
    """

    def __init__(self, call: Call[Result], hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.call, self.work = call, call.work
        self.sweep = sweep = Sweep(call.work, hidden, call.ref_hidden, weight, bias)
        self.first = sweep.first_with_gradient
        self.positions = call.work.rows.positions[call.work.rows.num_without_gradient :]
        self.coefficient = hidden.new_empty(len(self.positions), dtype=self.work.accumulation)
        self.result: Result | None = None
        self.dlogits: Tensor | None = None
        self.left: Index = slice(None)
        with_gradient = [block for block in sweep.blocks if block[-1][1] > self.first]
        self.one_chunk = len(with_gradient) == 1 and len(with_gradient[0]) == 1
        self.totals = self.dhidden = None
        if not self.one_chunk:
            self.totals = HeadTotals(self.work, weight)
            size = len(self.positions) if self.work.needs.hidden else 0
            # Rows that are dropped keep the zero.
            self.dhidden = hidden.new_zeros(size, hidden.shape[-1], dtype=self.work.accumulation)
        for block in sweep.blocks:
            if len(block) == 1:
                self._chunk(*block[0])
            else:
                self._longer_than_a_chunk(block)

    def log_probs(self) -> tuple[Tensor, Tensor]:
        """``logp`` and ``ref_logp`` [B, T], as far as they are there."""
        found = self.sweep.found
        return found.logp, found.ref_logp if self.call.ref_logp is None else self.call.ref_logp

    def kept(self) -> Kept:
        if self.totals is None:
            return Kept(self.positions[self.left], self.coefficient[self.left], dlogits=self.dlogits)
        weight, bias = self.totals.finished_weight(), self.totals.bias
        return Kept(self.positions, self.coefficient, dhidden=self.dhidden, weight=weight, bias=bias)

    def _find_coefficients(self, rows: slice) -> None:
        # A token's derivative is right as soon as all log-probs that it depends on are there. Rows with a gradient are
        # the last ones, so the last result is that of all log-probs.
        self.result, coefficient = self.call.differentiated(*self.log_probs())
        torch.index_select(coefficient.flatten(), 0, self.positions[rows], out=self.coefficient[rows])

    def _left(self, rows: slice) -> Index:
        """All of these rows; with ``drop_clamped`` those whose coefficient is not 0 (waits for the device)."""
        if not self.work.drop_clamped:
            return rows
        left = self.coefficient[rows].nonzero()[:, 0] + rows.start
        return rows if len(left) == rows.stop - rows.start else left

    def _dlogits(self, logits: Tensor, left: Index, scores: RowScores) -> Tensor:
        return self.sweep.dlogits(logits, _moved(left, self.work.rows.num_without_gradient), scores)

    def _chunk(self, start: int, end: int) -> None:
        """One chunk. All log-probs that its coefficients depend on are in it, or before it."""
        sweep, hidden = self.sweep, self.sweep.hidden(start, end)
        logits = sweep.logits(hidden)
        if end <= self.first:
            sweep.score(logits, start, end)
            return
        rows = slice(max(start - self.first, 0), end - self.first)
        if self.work.drop_clamped:
            scores = sweep.score(logits, start, end)
            self._find_coefficients(rows)
            left = self._left(rows)
            own = _moved(left, self.first - start)
            dlogits = self._dlogits(logits[own], left, selected(scores, own))
        else:
            _, dlogits = sweep.score_and_dlogits(logits, start, end)
            self._find_coefficients(rows)
            left, own = rows, _moved(rows, self.first - start)
        if self.totals is None:
            self.dlogits, self.left = dlogits, left
            return
        if self.dhidden is not None and self.work.needs.hidden:
            self.dhidden[left] = sweep.dhidden(dlogits)
        self.totals.add(dlogits, hidden[own], self.coefficient[left])

    def _longer_than_a_chunk(self, block: list[Chunk]) -> None:
        """A pair or sequence in several chunks. Its coefficients are known after the last one.

        So the weight's gradient needs the logits a second time.
        """
        sweep, scores = self.sweep, list[RowScores]()
        assert self.totals is not None
        assert self.dhidden is not None
        for start, end in block:
            logits = sweep.logits(sweep.hidden(start, end))
            if self.work.needs.hidden:
                scored, dlogits = sweep.score_and_dlogits(logits, start, end)
                self.dhidden[start - self.first : end - self.first] = sweep.dhidden(dlogits)
            else:
                scored = sweep.score(logits, start, end)
            scores.append(scored)
        self._find_coefficients(slice(block[0][0] - self.first, block[-1][1] - self.first))
        for (start, end), scored in zip(block, scores, strict=True):
            left = self._left(slice(start - self.first, end - self.first))
            own = _moved(left, self.first - start)
            hidden = sweep.hidden(start, end)[own]
            dlogits = self._dlogits(sweep.logits(hidden), left, selected(scored, own))
            self.totals.add(dlogits, hidden, self.coefficient[left])


def _moved(rows: Index, by: int) -> Index:
    """The same rows, counted from another one."""
    return slice(rows.start + by, rows.stop + by) if isinstance(rows, slice) else rows + by


def head_loss(call: Call[Result], hidden: Tensor, weight: Tensor, bias: Tensor | None) -> ScoredLoss[Result]:
    """The loss with a graph to hidden, weight and bias; its metrics and log-probs detached."""
    loss, scored = HeadLoss.apply(call, hidden, weight, bias)
    return scored._replace(result=scored.result._replace(loss=loss))
