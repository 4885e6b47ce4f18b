"""Scores of rows of logits, and their gradient in the logits' place, by kernel, for a head's chunks."""

import torch
from torch import Tensor

from humanline_fused.softmax import Softmax
from humanline_kernels.token_logp import token_logp_backward_, token_logp_forward


def _batch_of_one(target_ids: Tensor, softmax: Softmax) -> tuple[Tensor, Tensor, Tensor | None]:
    """ids, mask and temperature [1, n]: all rows count."""
    ids, temperature = target_ids[None], softmax.temperature
    return ids, torch.ones_like(ids, dtype=torch.bool), None if temperature is None else temperature[None]


def score_rows(
    logits: Tensor, target_ids: Tensor, softmax: Softmax, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``logp``, ``entropy`` (nats; [0] if not asked for), ``point`` and ``log2_total`` of logits [n, V], [n] each."""
    *scores, _ = token_logp_forward(logits[None], None, *_batch_of_one(target_ids, softmax), *softmax[1:], with_entropy)
    logp, entropy, point, log2_total = (values.flatten() for values in scores)
    return logp, entropy, point, log2_total


def write_dlogits_(
    logits: Tensor,
    target_ids: Tensor,
    softmax: Softmax,
    scores: tuple[Tensor, Tensor, Tensor, Tensor],
    dlogp: Tensor,
    dentropy: Tensor | None,
) -> None:
    """Write over the logits what their gradient is, for gradients [n] of log-probs and entropies."""
    _, entropy, point, log2_total = (values[None] for values in scores)
    token_logp_backward_(
        dlogp[None],
        None if dentropy is None else dentropy[None],
        logits[None],
        *_batch_of_one(target_ids, softmax),
        point,
        log2_total,
        None if dentropy is None else entropy,
        *softmax[1:],
    )
