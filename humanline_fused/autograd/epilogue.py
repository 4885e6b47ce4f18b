"""Scores of rows of logits, and their gradient in the same memory, by kernels, for a head's chunks.

A head's loop is never compiled and its chunks are no part of a graph, so nobody needs to see that the rows are written.
"""

import torch
from torch import Tensor

from humanline_fused.softmax import RowScores, Softmax, in_two_passes
from humanline_kernels import score_and_dlogits, token_logp
from humanline_kernels.cache import num_programs


def _batch_of_one(target_ids: Tensor, softmax: Softmax) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids, mask and temperature as one sequence [1, n] in which all rows count."""
    ids, temperature = target_ids[None], softmax.temperature
    return ids, torch.ones_like(ids, dtype=torch.bool), None if temperature is None else temperature[None]


def score_rows(logits: Tensor, target_ids: Tensor, softmax: Softmax, with_entropy: bool) -> RowScores:
    logp, entropy, point, log2_total, _ = token_logp.token_logp_forward(
        logits[None], None, *_batch_of_one(target_ids, softmax), *softmax[1:], with_entropy
    )
    return RowScores(logp.flatten(), entropy.flatten(), point.flatten(), log2_total.flatten())


def write_dlogits_(
    logits: Tensor,
    target_ids: Tensor,
    softmax: Softmax,
    scores: RowScores,
    dlogp: Tensor,
    dentropy: Tensor | None,
) -> None:
    token_logp.write_dlogits_(
        dlogp[None],
        None if dentropy is None else dentropy[None],
        logits[None],
        *_batch_of_one(target_ids, softmax),
        scores.point[None],
        scores.log2_total[None],
        None if dentropy is None else scores.entropy[None],
        *softmax[1:],
    )


def score_and_write_dlogits_(logits: Tensor, target_ids: Tensor, softmax: Softmax) -> RowScores:
    # A softcap's arithmetic takes longer than the read that one launch saves.
    programs = num_programs(logits) if softmax.softcap is None else 0
    if programs == 0:
        return in_two_passes(score_rows, write_dlogits_, logits, target_ids, softmax)
    logp, point, log2_total = score_and_dlogits.score_and_write_dlogits_(
        logits, target_ids, softmax.temperature, programs, softmax.inverse_temperature, softmax.scale
    )
    return RowScores(logp, logp[:0], point, log2_total)
