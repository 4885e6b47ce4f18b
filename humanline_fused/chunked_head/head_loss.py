"""hidden -> a loss whose derivative in the log-probs is known as soon as they are: 3 products with a trained head.

The derivative scales no logits: the gradient of a chunk's log-probs over its logits is computed for coefficients of 1,
and the coefficients scale what has H columns. So all but the weight's gradient can wait for them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from humanline_fused.chunked_head.gradients import (
    HeadTotals,
    hidden_gradient,
    refuse_double_backward,
    weight_gradient,
    weight_gradient_of_chunk,
)
from humanline_fused.chunked_head.products import column_sums
from humanline_fused.chunked_head.sweep import Sweep
from humanline_fused.chunked_head.work import Work

Loss = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""Loss [] with a graph and detached metrics, of log-probs under policy and reference, [B, T]."""


def _coefficient(loss: Loss, logp: Tensor, ref_logp: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """∂loss/∂logp [B, T], and what the loss returns.

    Of log-probs that are not all there yet, a token's derivative is right if all that it depends on are.
    """
    # Under the caller's hooks (checkpoint, save_on_cpu) every chunk would compute the model again, or wait.
    unpacked = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.enable_grad(), unpacked:
        logp = logp.detach().requires_grad_()
        results = loss(logp, ref_logp)
        (coefficient,) = torch.autograd.grad(results[0], logp)
    return coefficient, tuple(result.detach() for result in results)


class HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        work: Work,
        loss: Loss,
        ref_logp: Tensor | None,
        hidden: Tensor,
        ref_hidden: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, ...]:
        with torch.autocast(hidden.device.type, enabled=False):
            swept = _Forward(work, loss, ref_logp, hidden, ref_hidden, weight, bias)
            logp, _, scored = swept.sweep.results()
            ref_logp = scored if ref_logp is None else ref_logp
            with torch.no_grad():
                results = loss(logp, ref_logp)
        ctx.set_materialize_grads(False)
        ctx.work, ctx.one_chunk = work, swept.totals is None
        ctx.save_for_backward(hidden, weight, bias, *swept.for_backward())
        ctx.mark_non_differentiable(logp, ref_logp, *results[1:])
        return results[0], logp, ref_logp, *results[1:]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        if grad_outputs[0] is None:
            return (None,) * 7
        work: Work = ctx.work
        hidden, weight, bias, index, coefficient, *rest = ctx.saved_tensors
        grad_output = grad_outputs[0]
        dlogp = coefficient * grad_output.to(coefficient.dtype)
        dhidden = dweight = dbias = None
        with torch.autocast(hidden.device.type, enabled=False):
            if ctx.one_chunk:
                (dlogits,) = rest
                if work.needs.hidden:
                    product = Sweep(work, hidden, None, weight, bias).dhidden(dlogits)
                    dhidden = hidden_gradient(product, dlogp, index, hidden)
                if work.needs.weight:
                    rows = hidden.detach().flatten(0, 1)[index].to(work.dtype)
                    dweight = weight_gradient_of_chunk(work, dlogits, rows, dlogp, weight)
                if work.needs.bias:
                    dbias = column_sums(dlogits, dlogp).to(bias.dtype)
            else:
                product, total_weight, total_bias = rest
                if work.needs.hidden:
                    dhidden = hidden_gradient(product, dlogp, index, hidden)
                if work.needs.weight:
                    dweight = weight_gradient(work, total_weight, grad_output, weight.dtype)
                if work.needs.bias:
                    dbias = (total_bias * grad_output).to(bias.dtype)
        return None, None, None, dhidden, None, dweight, dbias


class _Forward:
    """What a forward leaves for backward: of one chunk its gradient over the logits, else products and totals."""

    def __init__(
        self,
        work: Work,
        loss: Loss,
        ref_logp: Tensor | None,
        hidden: Tensor,
        ref_hidden: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
    ) -> None:
        self.work, self.loss, self.ref_logp = work, loss, ref_logp
        self.sweep = sweep = Sweep(work, hidden, ref_hidden, weight, bias)
        self.first = sweep.first_with_gradient
        with_gradient = [block for block in sweep.blocks if block[-1][1] > self.first]
        one_chunk = len(with_gradient) == 1 and len(with_gradient[0]) == 1
        size = sweep.num_rows - self.first
        self.coefficient = hidden.new_zeros(size, dtype=work.accumulation)
        self.rows = torch.arange(self.first, sweep.num_rows, device=hidden.device)
        self.totals = None if one_chunk else HeadTotals(work, weight)
        self.dlogits: Tensor | None = None
        needed = work.needs.hidden and not one_chunk
        # Rows that are dropped keep the zero.
        self.dhidden = hidden.new_zeros(size if needed else 0, hidden.shape[-1], dtype=work.accumulation)
        for block in sweep.blocks:
            if len(block) == 1:
                self._chunk(*block[0])
            else:
                self._longer_than_a_chunk(block)

    def _rows(self, start: int, end: int) -> Tensor:
        """Those of a chunk that have a gradient."""
        return self.rows[max(start - self.first, 0) : max(end - self.first, 0)]

    def _find_coefficients(self, rows: Tensor) -> None:
        logp, _, scored = self.sweep.results()
        coefficient, _ = _coefficient(self.loss, logp, scored if self.ref_logp is None else self.ref_logp)
        index = self.work.rows.positions[rows - self.sweep.first_of_policy]
        self.coefficient[rows - self.first] = coefficient.flatten()[index]

    def _left(self, rows: Tensor) -> Tensor:
        """The rows whose coefficient is not 0, if others are to be dropped. Waits for the device."""
        if not self.work.drop_clamped:
            return rows
        return rows[self.coefficient[rows - self.first].nonzero()[:, 0]]

    def _chunk(self, start: int, end: int) -> None:
        """All that the coefficients of these rows depend on is in this chunk, or before it."""
        sweep, hidden = self.sweep, self.sweep.hidden(start, end)
        logits = sweep.logits(hidden)
        sweep.score(logits, start, end)
        rows = self._rows(start, end)
        if not len(rows):
            return
        self._find_coefficients(rows)
        left = self._left(rows)
        if len(left) < len(rows):
            logits, hidden = logits[left - start], hidden[left - start]
        else:
            logits, hidden = logits[len(logits) - len(rows) :], hidden[len(hidden) - len(rows) :]
        dlogits = sweep.dlogits(logits, left)
        if self.totals is None:
            self.dlogits, self.rows = dlogits, left
            return
        if self.work.needs.hidden:
            self.dhidden[left - self.first] = sweep.dhidden(dlogits)
        self.totals.add(dlogits, hidden, self.coefficient[left - self.first])

    def _longer_than_a_chunk(self, block: list[tuple[int, int]]) -> None:
        """The coefficients are known behind the last chunk: for the weight's gradient the logits come a second time."""
        sweep = self.sweep
        assert self.totals is not None
        for start, end in block:
            logits = sweep.logits(sweep.hidden(start, end))
            sweep.score(logits, start, end)
            if self.work.needs.hidden:
                self.dhidden[start - self.first : end - self.first] = sweep.dhidden(
                    sweep.dlogits(logits, self._rows(start, end))
                )
        self._find_coefficients(self._rows(block[0][0], block[-1][1]))
        for start, end in block:
            left = self._left(self._rows(start, end))
            hidden = sweep.hidden(start, end)
            if len(left) < end - start:
                hidden = hidden[left - start]
            dlogits = sweep.dlogits(sweep.logits(hidden), left)
            self.totals.add(dlogits, hidden, self.coefficient[left - self.first])

    def for_backward(self) -> tuple[Tensor | None, ...]:
        """Positions and coefficients of the rows, and of one chunk ``dlogits``, else products and totals."""
        index = self.work.rows.positions[self.rows - self.sweep.first_of_policy]
        coefficient = self.coefficient[self.rows - self.first]
        if self.totals is None:
            return index, coefficient, self.dlogits
        return index, coefficient, self.dhidden, self.totals.weight, self.totals.bias


def head_loss(
    work: Work,
    loss: Loss,
    ref_logp: Tensor | None,
    hidden: Tensor,
    ref_hidden: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, ...]:
    """Loss [] with a graph; detached logp and ref_logp [B, T], and the loss's metrics.

    Args:
        ref_logp: [B, T] of the reference, or None where ``ref_hidden`` goes through the same head.
    """
    return HeadLoss.apply(work, loss, ref_logp, hidden, ref_hidden, weight, bias)
