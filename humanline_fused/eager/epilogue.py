"""Scores of rows of logits, and their gradient in the same memory (docs/math.md, equations 1, 12 to 15).

As ``token_logp``, without a graph, for a chunk of logits that is not needed afterwards. The total of each row is kept,
so its probabilities take one pass instead of two.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from humanline_fused.eager.token_logp import CHUNK_BYTES, finite
from humanline_fused.softmax import RowScores, Softmax, in_two_passes


def _parts(logits: Tensor, target_ids: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """A few rows at a time: slice, logits in the accumulation dtype, ids (0 for an illegal id), and legality."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    num_rows = max(1, CHUNK_BYTES.get(logits.device.type, 2**28) // (logits.shape[-1] * dtype.itemsize))
    for start in range(0, len(logits), num_rows):
        part = slice(start, start + num_rows)
        ids = target_ids[part].long()[:, None]
        legal = (ids >= 0) & (ids < logits.shape[-1])
        yield part, logits[part].to(dtype), ids.where(legal, 0), legal


def score_rows(logits: Tensor, target_ids: Tensor, softmax: Softmax, with_entropy: bool) -> RowScores:
    logp = logits.new_empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32))
    entropy, point, log2_total = logp.new_empty(len(logits) if with_entropy else 0), logp.clone(), logp.clone()
    for part, rows, ids, legal in _parts(logits, target_ids):
        temperature = softmax.temperature_of(part)
        largest = rows.amax(-1, keepdim=True)
        z = softmax.apart(rows, largest, temperature)
        weights = z.exp()
        log_total = weights.sum(-1, keepdim=True).log()
        logp[part] = (z.gather(-1, ids) - log_total).where(legal, torch.nan)[:, 0]
        point[part] = largest[:, 0]
        log2_total[part] = (log_total / math.log(2)).where(legal, torch.nan)[:, 0]
        if with_entropy:
            p = weights.mul_((-log_total).exp())
            entropy[part] = -(p * finite(z - log_total)).sum(-1, keepdim=True).where(legal, torch.nan)[:, 0]
    return RowScores(logp, entropy, point, log2_total)


def score_and_write_dlogits_(logits: Tensor, target_ids: Tensor, softmax: Softmax) -> RowScores:
    return in_two_passes(score_rows, write_dlogits_, logits, target_ids, softmax)


def write_dlogits_(
    logits: Tensor,
    target_ids: Tensor,
    softmax: Softmax,
    scores: RowScores,
    dlogp: Tensor,
    dentropy: Tensor | None,
) -> None:
    for part, rows, ids, legal in _parts(logits, target_ids):
        temperature = softmax.temperature_of(part)
        largest, log_total = scores.point[part, None], scores.log2_total[part, None] * math.log(2)
        log_p = softmax.apart(rows, largest, temperature) - log_total
        p, dz = log_p.exp(), dlogp[part, None].where(legal, torch.nan)
        dx = (p * -dz).scatter_add_(-1, ids, dz)
        if dentropy is not None:
            dx -= dentropy[part, None] * p * (finite(log_p) + scores.entropy[part, None])
        logits[part] = softmax.back(dx, rows, temperature).to(logits.dtype)
