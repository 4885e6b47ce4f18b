"""Products and scores of the rows of one call: the reference's rows first, then the policy's."""

from functools import cached_property

import torch
from torch import Tensor

from humanline_fused.chunked_head.chunks import Chunk, plan
from humanline_fused.chunked_head.gradients import product_with_weight
from humanline_fused.chunked_head.products import write_logits
from humanline_fused.chunked_head.work import Work
from humanline_fused.layer import TokenLogps
from humanline_fused.softmax import RowScores, Softmax

Index = slice | Tensor


class Sweep:
    """Products and scores of chunks of rows.

    Args:
        hidden: [B, T, H] of the policy.
        ref_hidden: [B, T, H] of a reference with the same head, or None.
        ids: [n], target ids of the policy's rows, as an earlier sweep has found them; None to look them up.
    """

    def __init__(
        self,
        work: Work,
        hidden: Tensor,
        ref_hidden: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor | None = None,
    ) -> None:
        self.work = work
        self.sources = [h.detach().flatten(0, 1) for h in (ref_hidden, hidden) if h is not None]
        self.weight = weight.detach().to(work.dtype)
        self.bias = None if bias is None else bias.detach().to(work.dtype)
        num_tokens = len(work.rows.positions)
        self.first_of_policy = num_tokens * (len(self.sources) - 1)
        self.first_with_gradient = self.first_of_policy + work.rows.num_without_gradient
        self.num_rows = self.first_of_policy + num_tokens
        self.ids = work.target_ids.index_select(0, work.rows.positions) if ids is None else ids
        temperature = work.softmax.temperature
        self._temperature = None if temperature is None else temperature[work.rows.positions]
        self._workspace: Tensor | None = None

    @cached_property
    def blocks(self) -> list[list[Chunk]]:
        return plan(self.first_of_policy, self.work.rows, self.work.capacity)

    @cached_property
    def found(self) -> TokenLogps:
        """The scores of all tokens so far, 0 elsewhere, without a graph."""
        logp = self.ids.new_zeros(self.work.shape, dtype=self.work.accumulation)
        nothing = logp.new_empty(0)
        return TokenLogps(
            logp=logp,
            entropy=torch.zeros_like(logp) if self.work.with_entropy else nothing,
            ref_logp=torch.zeros_like(logp) if len(self.sources) > 1 else nothing,
        )

    def _parts(self, start: int, end: int) -> list[tuple[bool, slice]]:
        """A chunk's rows of the reference and of the policy (True), counted from the first of each."""
        between = self.first_of_policy
        parts = [(False, slice(start, min(end, between))), (True, slice(max(start - between, 0), end - between))]
        return [(of_policy, rows) for of_policy, rows in parts if rows.start < rows.stop]

    def _at(self, values: Tensor, start: int, end: int) -> Tensor:
        """Values of a chunk's rows, from those of the policy's rows [n]: a reference's rows have the same."""
        return _joined([values[rows] for _, rows in self._parts(start, end)])

    def hidden(self, start: int, end: int) -> Tensor:
        """Hidden states [end − start, H], in the products' dtype."""
        parts = [
            self.sources[-1 if of_policy else 0].index_select(0, self.work.rows.positions[rows])
            for of_policy, rows in self._parts(start, end)
        ]
        return _joined(parts).to(self.work.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, V], in the workspace of this sweep; the next call overwrites them."""
        if self._workspace is None or self._workspace.shape[0] < hidden.shape[0]:
            largest = max((end - start for block in self.blocks for start, end in block), default=0)
            self._workspace = self.work.empty_logits(max(largest, len(hidden)), len(self.weight))
        logits = self._workspace[: hidden.shape[0]]
        write_logits(logits, hidden, self.weight, self.bias)
        return logits

    def score(self, logits: Tensor, start: int, end: int) -> RowScores:
        """The scores of a chunk of logits; ``found`` takes them up."""
        ids, softmax = self._tokens(start, end)
        scores = self.work.epilogue.score_rows(logits, ids, softmax, self.work.with_entropy)
        self._take_up(scores, start, end)
        return scores

    def score_and_dlogits(self, logits: Tensor, start: int, end: int) -> tuple[RowScores, Tensor]:
        """:meth:`score` without entropies, and :meth:`dlogits` for ``dlogp`` = 1 of the rows that have a gradient."""
        if start >= self.first_with_gradient:
            ids, softmax = self._tokens(start, end)
            scores = self.work.epilogue.score_and_write_dlogits_(logits, ids, softmax)
            self._take_up(scores, start, end)
            return scores, logits.to(self.work.dtype)
        scores, own = self.score(logits, start, end), slice(self.first_with_gradient - start, None)
        rows = slice(self.work.rows.num_without_gradient, end - self.first_of_policy)
        return scores, self.dlogits(logits[own], rows, selected(scores, own))

    def _tokens(self, start: int, end: int) -> tuple[Tensor, Softmax]:
        """Target ids and softmax settings of a chunk's rows."""
        temperature = None if self._temperature is None else self._at(self._temperature, start, end)
        return self._at(self.ids, start, end), self.work.softmax._replace(temperature=temperature)

    def _take_up(self, scores: RowScores, start: int, end: int) -> None:
        done = 0
        for of_policy, rows in self._parts(start, end):
            index, own = self.work.rows.positions[rows], slice(done, done + rows.stop - rows.start)
            done = own.stop
            (self.found.logp if of_policy else self.found.ref_logp).view(-1)[index] = scores.logp[own]
            if self.work.with_entropy and of_policy:
                self.found.entropy.view(-1)[index] = scores.entropy[own]

    def dlogits(
        self,
        logits: Tensor,
        rows: Index,
        scores: RowScores,
        dlogp: Tensor | None = None,
        dentropy: Tensor | None = None,
    ) -> Tensor:
        """Overwrite the logits of these rows of the policy with their gradient, for ``dlogp`` = 1 if None."""
        temperature = None if self._temperature is None else self._temperature[rows]
        softmax = self.work.softmax._replace(temperature=temperature)
        dlogp = torch.ones_like(scores.logp) if dlogp is None else dlogp
        self.work.epilogue.write_dlogits_(logits, self.ids[rows], softmax, scores, dlogp, dentropy)
        return logits.to(self.work.dtype)

    def dhidden(self, dlogits: Tensor) -> Tensor:
        """dlogits · weight [n, H], over the whole vocabulary, in the accumulation dtype."""
        return product_with_weight(self.work, dlogits, self.weight)


def selected(scores: RowScores, rows: Index) -> RowScores:
    """The scores of some of the rows; entropies that were not asked for stay empty."""
    logp, entropy, point, log2_total = scores
    if isinstance(rows, slice) and (rows.start, rows.stop) in ((0, None), (0, logp.shape[0])):
        return scores
    return RowScores(logp[rows], entropy[rows] if entropy.shape[0] else entropy, point[rows], log2_total[rows])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
