"""Scores of rows whose vocabulary is sharded over a process group (docs/math.md, equation 17).

Every rank scores its slice of a row. One all-gather of four numbers per row (five with an entropy) gives the scores of
the whole row. A rank keeps its own point with the whole row's total, so the gradient of its slice needs no correction.
"""

import math

import torch
import torch.distributed
from torch import Tensor

from humanline_fused.softmax import Epilogue, RowScores, Softmax


class Shards(Epilogue):
    """An epilogue for whole rows, built on the epilogue for this rank's slice.

    Args:
        num_columns: size of this rank's slice. Slices are in the order of the group's ranks.
    """

    def __init__(
        self, epilogue: Epilogue, group: torch.distributed.ProcessGroup, num_columns: int, device: torch.device
    ) -> None:
        self.epilogue, self.group, self.num_columns = epilogue, group, num_columns
        sizes = self._gather(torch.full((1,), num_columns, device=device))
        # Stays on the device: the host does not wait for it.
        self.first_column = sizes[: torch.distributed.get_rank(group)].sum()

    def _gather(self, mine: Tensor) -> Tensor:
        """The tensors of all ranks, [ranks, ...]."""
        everyones = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(self.group))]
        torch.distributed.all_gather(everyones, mine.contiguous(), group=self.group)
        return torch.stack(everyones)

    def smallest(self, number: int) -> int:
        """Minimum over the ranks. Slices and free memory differ, and all ranks must use the same chunks."""
        least = torch.full((1,), number, device=self.first_column.device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN, group=self.group)
        return int(least)

    def add_up(self, total: Tensor) -> None:
        """Sum over the ranks, in place."""
        torch.distributed.all_reduce(total, group=self.group)

    def _own(self, target_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids within this rank's slice (0 for an id of another rank), and whether this rank has them."""
        ids = target_ids.long() - self.first_column
        own = (ids >= 0) & (ids < self.num_columns)
        return ids.where(own, 0), own

    def score_rows(self, logits: Tensor, target_ids: Tensor, softmax: Softmax, with_entropy: bool) -> RowScores:
        """Log-probs and entropies of whole rows; point and total give the probabilities of this rank's columns."""
        ids, own = self._own(target_ids)
        logp, entropy, point, log2_total = self.epilogue.score_rows(logits, ids, softmax, with_entropy)
        temperature = softmax.temperature_of(slice(None))
        # All logits of this slice are -inf, as of a padded vocabulary.
        empty = (softmax.scores(point[:, None], temperature)[:, 0] / math.log(2)).isneginf()
        point, logp = (t.masked_fill(empty, 0.0) for t in (point, logp))
        log2_total = log2_total.masked_fill(empty, -torch.inf)
        mine = torch.stack(
            [logp.where(own, 0.0), own.to(logp.dtype), point, log2_total, *([entropy] if with_entropy else [])]
        )
        logps, owned, points, log2_totals, *entropies = self._gather(mine).unbind(1)

        # Relative to the heaviest slice's point: an offset common to all logits must not take digits.
        weights = softmax.scores(points.T, temperature).T / math.log(2) + log2_totals
        anchor = points.gather(0, weights.argmax(0, keepdim=True))
        shares = softmax.apart(points.T, anchor.T, temperature).T / math.log(2) + log2_totals
        highest = shares.amax(0)
        whole = highest + (shares - highest).exp2().sum(0).log2()
        missing = whole - shares  # −log2 of each slice's share of the row's probability
        legal = owned.sum(0) == 1
        logp = (logps - missing * math.log(2)).where(owned > 0, 0.0).sum(0).where(legal, torch.nan)
        if with_entropy:
            (entropies,) = entropies
            share = (-missing).exp2()
            parts = share * (entropies + missing * math.log(2))
            # A share of NaN is no share of 0: the row's entropy is NaN.
            entropy = parts.where(share != 0, 0.0).sum(0).where(legal, torch.nan)
        z = softmax.apart(point[:, None], anchor.T, temperature)[:, 0] / math.log(2)
        return RowScores(logp, entropy, point, (whole - z).where(legal, torch.nan))

    def write_dlogits_(
        self,
        logits: Tensor,
        target_ids: Tensor,
        softmax: Softmax,
        scores: RowScores,
        dlogp: Tensor,
        dentropy: Tensor | None,
    ) -> None:
        """Overwrite this rank's slice of the logits with its gradient."""
        ids, own = self._own(target_ids)
        temperature = softmax.temperature_of(slice(None))
        first = logits[:, :1].to(dlogp.dtype, copy=True)
        self.epilogue.write_dlogits_(logits, ids, softmax, scores, dlogp, dentropy)
        # If another rank has the target, column 0 was used as its placeholder, and gets its own gradient here.
        log_p = softmax.apart(first, scores.point[:, None], temperature)
        log_p = (log_p - scores.log2_total[:, None] * math.log(2)).clamp(min=-1e4)
        slope = -dlogp[:, None]
        if dentropy is not None:
            slope = slope - dentropy[:, None] * (log_p + scores.entropy[:, None])
        column = softmax.back(log_p.exp() * slope, first, temperature).to(logits.dtype)
        logits[:, :1] = column.where(~own[:, None], logits[:, :1])
