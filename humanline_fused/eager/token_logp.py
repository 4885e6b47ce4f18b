"""Log-prob of each target (docs/math.md, equation 1)."""

import torch
from torch import Tensor


def _token_logp(logits: Tensor, target_ids: Tensor, loss_mask: Tensor) -> Tensor:
    # Rows that do not count are never read: whatever they hold, they give 0 and get a zero gradient.
    counted = loss_mask.flatten().nonzero()[:, 0]
    rows = logits.flatten(0, 1).index_select(0, counted).to(torch.promote_types(logits.dtype, torch.float32))
    ids = target_ids.flatten().index_select(0, counted).long()
    legal = (ids >= 0) & (ids < logits.shape[-1])
    logp = rows.log_softmax(-1).gather(-1, ids.where(legal, 0)[:, None])[:, 0]
    logp = logp * torch.where(legal, 1.0, torch.nan)
    return logp.new_zeros(loss_mask.numel()).index_copy(0, counted, logp).view(loss_mask.shape)


def token_logp(
    logits: Tensor, ref_logits: Tensor | None, target_ids: Tensor, loss_mask: Tensor
) -> tuple[Tensor, Tensor | None]:
    """``logp`` with a graph and ``ref_logp`` without one, [B, T], float32 (float64 for float64 logits), nats."""
    logp = _token_logp(logits, target_ids, loss_mask)
    if ref_logits is None:
        return logp, None
    with torch.no_grad():
        return logp, _token_logp(ref_logits, target_ids, loss_mask)
