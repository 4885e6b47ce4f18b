"""Log-prob of each target (docs/math.md, equation 1)."""

import torch
from torch import Tensor


def _token_logp(logits: Tensor, target_ids: Tensor, loss_mask: Tensor) -> Tensor:
    # Rows that do not count are never read: whatever they hold, they give 0 and get a zero gradient.
    rows, ids = logits[loss_mask], target_ids[loss_mask]
    legal = (ids >= 0) & (ids < logits.shape[-1])
    rows = rows.to(torch.promote_types(logits.dtype, torch.float32))
    logp = rows.log_softmax(-1).gather(-1, ids.where(legal, 0).long()[:, None])[:, 0]
    zeros = logp.new_zeros(loss_mask.shape)
    return zeros.index_put((loss_mask,), logp * torch.where(legal, 1.0, torch.nan))


def token_logp(
    logits: Tensor, ref_logits: Tensor | None, target_ids: Tensor, loss_mask: Tensor
) -> tuple[Tensor, Tensor | None]:
    """``logp`` with a graph and ``ref_logp`` without one, [B, T], float32 (float64 for float64 logits), nats."""
    logp = _token_logp(logits, target_ids, loss_mask)
    if ref_logits is None:
        return logp, None
    with torch.no_grad():
        return logp, _token_logp(ref_logits, target_ids, loss_mask)
