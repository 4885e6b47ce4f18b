"""A vocabulary that is spread over the ranks of a process group: rows' scores put together from their shards.

Every rank scores its slice of a row, and one gathering of four numbers a row makes of them the scores of the whole row.
What a rank keeps then is as if its slice had been scored with the whole row's total, so its gradient is right as it is.
"""

import math

import torch
import torch.distributed
from torch import Tensor

from humanline_fused.chunked_head.epilogue import Epilogue
from humanline_fused.softmax import Softmax


class Shards:
    """An epilogue of whole rows on the epilogue of a rank's own slice.

    Args:
        num_columns: size of this rank's slice; slices follow each other in the order of the group's ranks.
    """

    def __init__(
        self, epilogue: Epilogue, group: torch.distributed.ProcessGroup, num_columns: int, device: torch.device
    ) -> None:
        self.epilogue, self.group, self.num_columns = epilogue, group, num_columns
        sizes = self._gather(torch.full((1,), num_columns, device=device))
        # On the device: where the slice begins is nothing that the host has to wait for.
        self.first_column = sizes[: torch.distributed.get_rank(group)].sum()

    def _gather(self, mine: Tensor) -> Tensor:
        """[ranks, ...] of every rank's."""
        everyones = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(self.group))]
        torch.distributed.all_gather(everyones, mine.contiguous(), group=self.group)
        return torch.stack(everyones)

    def smallest(self, number: int) -> int:
        """Of the ranks' numbers: slices and free memory differ, and every rank has to cut the rows alike."""
        least = torch.full((1,), number, device=self.first_column.device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN, group=self.group)
        return int(least)

    def add_up(self, total: Tensor) -> None:
        """Sum over the ranks, in place."""
        torch.distributed.all_reduce(total, group=self.group)

    def _own(self, target_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids in this rank's slice, the first column standing in for those of others, and whether they are its own."""
        ids = target_ids.long() - self.first_column
        own = (ids >= 0) & (ids < self.num_columns)
        return ids.where(own, 0), own

    def score_rows(
        self, logits: Tensor, target_ids: Tensor, softmax: Softmax, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As of whole rows; point and total are this rank's to compute its probabilities of."""
        ids, own = self._own(target_ids)
        logp, entropy, point, log2_total = self.epilogue.score_rows(logits, ids, softmax, with_entropy)
        z = softmax.scores(point[:, None], softmax.temperature_of(slice(None)))[:, 0] / math.log(2)
        empty = z.isneginf()  # nothing in this slice has a probability: a vocabulary padded with -inf
        z, point, logp = (t.masked_fill(empty, 0.0) for t in (z, point, logp))
        log2_total = log2_total.masked_fill(empty, -torch.inf)
        mine = torch.stack(
            [logp.where(own, 0.0), own.to(logp.dtype), z, log2_total, *([entropy] if with_entropy else [])]
        )
        logps, owned, zs, log2_totals, *entropies = self._gather(mine).unbind(1)

        # Around the point of the heaviest slice, so that an offset common to all logits takes no digits.
        anchor = zs.gather(0, (zs + log2_totals).argmax(0, keepdim=True))
        shares = (zs - anchor) + log2_totals
        highest = shares.amax(0)
        whole = highest + (shares - highest).exp2().sum(0).log2()
        missing = whole - shares  # −log2 of each slice's share of the row's probability
        legal = owned.sum(0) == 1
        logp = (logps - missing * math.log(2)).where(owned > 0, 0.0).sum(0).where(legal, torch.nan)
        if with_entropy:
            (entropies,) = entropies
            share = (-missing).exp2()
            parts = share * (entropies + missing * math.log(2))
            entropy = parts.where(share > 0, 0.0).sum(0)
        return logp, entropy, point, (whole - (z - anchor[0])).where(legal, torch.nan)

    def write_dlogits_(
        self,
        logits: Tensor,
        target_ids: Tensor,
        softmax: Softmax,
        scores: tuple[Tensor, Tensor, Tensor, Tensor],
        dlogp: Tensor,
        dentropy: Tensor | None,
    ) -> None:
        """The gradient over this rank's slice of the logits, in their place."""
        ids, own = self._own(target_ids)
        _, entropy, point, log2_total = scores
        temperature = softmax.temperature_of(slice(None))
        first = logits[:, :1].to(dlogp.dtype, copy=True)
        self.epilogue.write_dlogits_(logits, ids, softmax, scores, dlogp, dentropy)
        # The first column was taken for the target where another rank has it: it is a column like the others.
        log_p = softmax.scores(first, temperature) - softmax.scores(point[:, None], temperature)
        log_p = (log_p - log2_total[:, None] * math.log(2)).clamp(min=-1e4)
        slope = -dlogp[:, None]
        if dentropy is not None:
            slope = slope - dentropy[:, None] * (log_p + entropy[:, None])
        column = softmax.back(log_p.exp() * slope, first, temperature).to(logits.dtype)
        logits[:, :1] = column.where(~own[:, None], logits[:, :1])
