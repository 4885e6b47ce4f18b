"""Log-prob of each target and its derivative, row by row (docs/math.md, equations 1 and 12)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 2**20}
"""What is computed at once: on a CPU as much as stays in a core's cache, elsewhere 256 MiB."""


def _chunks(
    logits: Tensor, target_ids: Tensor, loss_mask: Tensor
) -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor]]:
    """Positions, rows and ids of the tokens that count, a few at a time. The other rows are never read."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    num_rows = max(1, CHUNK_BYTES.get(logits.device.type, 2**28) // (logits.shape[-1] * dtype.itemsize))
    for positions in loss_mask.nonzero().split(num_rows):
        index = positions.unbind(1)
        yield index, logits[index].to(dtype), target_ids[index].long()[:, None]


class TokenLogp(torch.autograd.Function):
    """Holds no [B, T, V] tensor but dlogits, where autograd's own log_softmax holds two more. Twice differentiable."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target_ids: Tensor, loss_mask: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target_ids, loss_mask)
        logp = logits.new_zeros(loss_mask.shape, dtype=torch.promote_types(logits.dtype, torch.float32))
        for index, rows, ids in _chunks(logits, target_ids, loss_mask):
            legal = (ids >= 0) & (ids < logits.shape[-1])
            scored = rows.log_softmax(-1).gather(-1, ids.where(legal, 0))
            logp[index] = scored.where(legal, torch.nan)[:, 0]
        return logp

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        logits, target_ids, loss_mask = ctx.saved_tensors
        dlogits = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        for index, rows, ids in _chunks(logits, target_ids, loss_mask):
            legal = (ids >= 0) & (ids < logits.shape[-1])
            dlogp = grad_outputs[0][index][:, None].where(legal, torch.nan)
            drows = rows.softmax(-1) * -dlogp
            dlogits[index] = drows.scatter_add_(-1, ids.where(legal, 0), dlogp).to(logits.dtype)
        return dlogits, None, None


def token_logp(
    logits: Tensor, ref_logits: Tensor | None, target_ids: Tensor, loss_mask: Tensor
) -> tuple[Tensor, Tensor | None]:
    """``logp`` with a graph and ``ref_logp`` without one, [B, T], float32 (float64 for float64 logits), nats."""
    logp = TokenLogp.apply(logits, target_ids, loss_mask)
    return logp, None if ref_logits is None else TokenLogp.apply(ref_logits.detach(), target_ids, loss_mask)
