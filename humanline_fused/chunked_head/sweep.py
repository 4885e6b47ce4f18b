"""Products and scores of the rows of one call: the reference's rows first, then the policy's."""

from functools import cached_property

import torch
from torch import Tensor

from humanline_fused.chunked_head.chunks import Chunk, plan
from humanline_fused.chunked_head.products import product, write_logits
from humanline_fused.chunked_head.shards import Shards
from humanline_fused.chunked_head.work import Work
from humanline_fused.layer import TokenLogps
from humanline_fused.softmax import RowScores


class Sweep:
    """Products and scores of chunks of rows.

    Args:
        hidden: [B, T, H] of the policy.
        ref_hidden: [B, T, H] of a reference with the same head, or None.
        scores: scores of all rows, if they are known.
    """

    def __init__(
        self,
        work: Work,
        hidden: Tensor,
        ref_hidden: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        scores: RowScores | None = None,
    ) -> None:
        self.work = work
        self.sources = [h.detach().flatten(0, 1) for h in (ref_hidden, hidden) if h is not None]
        self.weight = weight.detach().to(work.dtype)
        self.bias = None if bias is None else bias.detach().to(work.dtype)
        num_tokens = len(work.rows.positions)
        self.first_of_policy = num_tokens * (len(self.sources) - 1)
        self.first_with_gradient = self.first_of_policy + work.rows.num_without_gradient
        self.num_rows = self.first_of_policy + num_tokens
        if scores is None:
            sizes = [self.num_rows, self.num_rows if work.with_entropy else 0, self.num_rows, self.num_rows]
            scores = RowScores(*(hidden.new_empty(size, dtype=work.accumulation) for size in sizes))
        self.scores = scores
        self._workspace = work.empty_logits(0, len(weight))

    @cached_property
    def blocks(self) -> list[list[Chunk]]:
        return plan(self.first_of_policy, self.work.rows, self.work.capacity)

    def index(self, rows: slice) -> Tensor:
        """Positions of rows of the policy, in [0, B · T)."""
        return self.work.rows.positions[rows.start - self.first_of_policy : rows.stop - self.first_of_policy]

    def _per_source(self, start: int, end: int) -> list[tuple[Tensor, Tensor]]:
        """Hidden states and positions of rows of the reference, the policy or both."""
        between, index = self.first_of_policy, self.work.rows.positions
        parts = []
        if start < between:
            parts.append((self.sources[0], index[start : min(end, between)]))
        if end > between:
            parts.append((self.sources[-1], index[max(start - between, 0) : end - between]))
        return parts

    def hidden(self, start: int, end: int) -> Tensor:
        """Hidden states [end − start, H], in the products' dtype."""
        parts = [source[index] for source, index in self._per_source(start, end)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self.work.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, V], in the workspace of this sweep; the next call overwrites them."""
        if len(self._workspace) < len(hidden):
            largest = max((end - start for block in self.blocks for start, end in block), default=0)
            self._workspace = self.work.empty_logits(max(largest, len(hidden)), len(self.weight))
        logits = self._workspace[: len(hidden)]
        write_logits(logits, hidden, self.weight, self.bias)
        return logits

    def score(self, logits: Tensor, start: int, end: int) -> None:
        """Store the scores of a chunk of logits."""
        index = torch.cat([index for _, index in self._per_source(start, end)])
        ids, softmax = self.work.target_ids[index], self.work.softmax_at(index)
        scored = self.work.epilogue.score_rows(logits, ids, softmax, self.work.with_entropy)
        for into, values in zip(self.scores, scored, strict=True):
            if len(into):
                into[start:end] = values

    def dlogits(
        self, logits: Tensor, rows: Tensor, dlogp: Tensor | None = None, dentropy: Tensor | None = None
    ) -> Tensor:
        """Overwrite the logits of these rows of the policy with their gradient, for ``dlogp`` = 1 if None."""
        scores = RowScores(*(values[rows] if len(values) else values for values in self.scores))
        index = self.work.rows.positions[rows - self.first_of_policy]
        ids, softmax = self.work.target_ids[index], self.work.softmax_at(index)
        dlogp = torch.ones_like(scores.logp) if dlogp is None else dlogp
        self.work.epilogue.write_dlogits_(logits, ids, softmax, scores, dlogp, dentropy)
        return logits.to(self.work.dtype)

    def dhidden(self, dlogits: Tensor) -> Tensor:
        """dlogits · weight [n, H], over the whole vocabulary, in the accumulation dtype."""
        total = product(dlogits, self.weight)
        if isinstance(self.work.epilogue, Shards):
            self.work.epilogue.add_up(total)
        return total

    def results(self) -> TokenLogps:
        """The scores of all tokens, without a graph."""
        between, scores = self.first_of_policy, self.scores
        nothing = scores.logp.new_empty(0)
        return TokenLogps(
            logp=self.per_token(scores.logp[between:]),
            entropy=self.per_token(scores.entropy[between:]) if self.work.with_entropy else nothing,
            ref_logp=self.per_token(scores.logp[:between]) if len(self.sources) > 1 else nothing,
        )

    def per_token(self, values: Tensor) -> Tensor:
        """[B, T] from values of the policy's rows; 0 for tokens that do not count."""
        into = values.new_zeros(self.work.shape.numel())
        return into.index_copy(0, self.work.rows.positions, values).view(self.work.shape)
