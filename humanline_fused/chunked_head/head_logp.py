"""hidden -> logp and entropy, for any loss.

Products with the weight: 1 without a gradient; 2 if only hidden needs one, because forward stores ∂logp/∂hidden. Else
backward computes the logits again: 4 if the head needs a gradient, 3 if hidden and the entropy do.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from humanline_fused.chunked_head.chunks import chunks_of
from humanline_fused.chunked_head.gradients import (
    HeadGradients,
    HeadTotals,
    hidden_gradient,
    refuse_double_backward,
    weight_gradient,
    weight_gradient_of_chunk,
)
from humanline_fused.chunked_head.products import column_sums
from humanline_fused.chunked_head.sweep import Sweep, selected
from humanline_fused.chunked_head.work import Work
from humanline_fused.layer import TokenLogps
from humanline_fused.softmax import RowScores


class HeadLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, work: Work, hidden: Tensor, ref_hidden: Tensor | None, weight: Tensor, bias: Tensor | None
    ) -> TokenLogps:
        sweep = Sweep(work, hidden, ref_hidden, weight, bias)
        first, needs = sweep.first_with_gradient, work.needs
        store = needs.hidden and not needs.head and not work.with_entropy
        dhidden = hidden.new_empty(sweep.num_rows - first if store else 0, hidden.shape[-1], dtype=work.accumulation)
        scores: list[RowScores] = []
        with torch.autocast(hidden.device.type, enabled=False):
            for ((start, end),) in sweep.blocks:
                logits = sweep.logits(sweep.hidden(start, end))
                if store and end > first:
                    scored, dlogits = sweep.score_and_dlogits(logits, start, end)
                    dhidden[max(start - first, 0) : end - first] = sweep.dhidden(dlogits)
                else:
                    scored = sweep.score(logits, start, end)
                scores.append(scored)
        ctx.set_materialize_grads(False)
        ctx.work, ctx.store, ctx.rows = work, store, slice(first - sweep.first_of_policy, None)
        again = (needs.hidden or needs.head) and not store
        columns = zip(*scores, strict=True) if again else ()
        kept = [torch.cat(values)[first:] if len(values[0]) else values[0] for values in columns]
        # The ids are a copy. The positions may be the caller's own: saved, a write to them is an error in backward.
        ctx.save_for_backward(hidden, weight, bias, dhidden, sweep.ids, work.rows.positions, *kept)
        ctx.mark_non_differentiable(sweep.found.ref_logp, *(() if work.with_entropy else (sweep.found.entropy,)))
        return sweep.found

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        hidden, weight, bias, dhidden, ids, positions, *scores = ctx.saved_tensors
        work: Work = replace(ctx.work, rows=ctx.work.rows._replace(positions=positions))
        index = positions[ctx.rows]
        dlogp, dentropy = (None if g is None else g.flatten()[index] for g in grad_outputs[:2])
        if dlogp is None and dentropy is None:
            return None, None, None, None, None
        if ctx.store:
            assert dlogp is not None
            return None, hidden_gradient(dhidden, dlogp, index, hidden), None, None, None
        gradients = _again(work, hidden, weight, bias, ids, scores, dlogp, dentropy)
        return None, gradients.hidden, None, gradients.weight, gradients.bias


def _again(
    work: Work,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    scores: Sequence[Tensor],
    dlogp: Tensor | None,
    dentropy: Tensor | None,
) -> HeadGradients:
    """The gradients, from logits that are computed again.

    Args:
        ids: target ids of all rows, [n].
        scores: RowScores of the rows with a gradient; empty if no row counts.
    """
    sweep = Sweep(work, hidden, None, weight, bias, ids)
    first = sweep.first_with_gradient
    chunks = chunks_of(first, sweep.num_rows, work.capacity)
    coefficient, dlogp, dentropy = _factor_out(dlogp, dentropy)
    dhidden = hidden.new_zeros(hidden.shape).flatten(0, 1) if work.needs.hidden else None
    totals = None if len(chunks) == 1 else HeadTotals(work, weight)
    dweight, dbias = None, None
    with torch.autocast(hidden.device.type, enabled=False):
        for start, end in chunks:
            part, rows_hidden = slice(start - first, end - first), sweep.hidden(start, end)
            factors = dlogp[part], None if dentropy is None else dentropy[part]
            own = selected(RowScores(*scores), part)
            dlogits = sweep.dlogits(sweep.logits(rows_hidden), slice(start, end), own, *factors)
            if dhidden is not None:
                scaled = sweep.dhidden(dlogits) * coefficient[part, None]
                dhidden[work.rows.positions[start:end]] = scaled.to(hidden.dtype)
            if totals is not None:
                totals.add(dlogits, rows_hidden, coefficient[part])
                continue
            if work.needs.weight:
                dweight = weight_gradient_of_chunk(work, dlogits, rows_hidden, coefficient[part], weight)
            if bias is not None and work.needs.bias:
                dbias = column_sums(dlogits, coefficient[part]).to(bias.dtype)
        if totals is not None:
            total = totals.finished_weight()
            if total is not None:
                dweight = weight_gradient(work, total, None, weight.dtype)
            if totals.bias is not None and bias is not None:
                dbias = totals.bias.to(bias.dtype)
    return HeadGradients(None if dhidden is None else dhidden.view(hidden.shape), dweight, dbias)


def _factor_out(dlogp: Tensor | None, dentropy: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """(coefficient, dlogp, dentropy): a factor per row for the products, and both gradients divided by it."""
    if dentropy is None:
        assert dlogp is not None
        return dlogp, torch.ones_like(dlogp), None
    dlogp = torch.zeros_like(dentropy) if dlogp is None else dlogp
    size = torch.maximum(dlogp.abs(), dentropy.abs())
    coefficient = size.where(size != 0, 1.0)
    return coefficient, dlogp / coefficient, dentropy / coefficient


def head_logp(work: Work, hidden: Tensor, ref_hidden: Tensor | None, weight: Tensor, bias: Tensor | None) -> TokenLogps:
    """Scores of the policy's tokens, and of the reference's if it has the same head."""
    return TokenLogps(*HeadLogp.apply(work, hidden, ref_hidden, weight, bias))
