"""Log-prob of each target, entropy of each row, and their derivatives (docs/math.md, equations 1, 12 to 15)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from humanline_fused.layer import TokenLogps
from humanline_fused.softmax import Softmax

CHUNK_BYTES = {"cpu": 2**20}
"""Bytes of logits that are computed at once: on a CPU as many as fit a core's cache, elsewhere 256 MiB."""


def _chunks(
    logits: Tensor, target_ids: Tensor, loss_mask: Tensor
) -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]]:
    """A few tokens that count at a time: index, logits, ids (0 for an illegal id), and legality.

    Rows that do not count are never read.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    num_rows = max(1, CHUNK_BYTES.get(logits.device.type, 2**28) // (logits.shape[-1] * dtype.itemsize))
    for positions in loss_mask.nonzero().split(num_rows):
        index = positions.unbind(1)
        ids = target_ids[index].long()[:, None]
        legal = (ids >= 0) & (ids < logits.shape[-1])
        yield index, logits[index].to(dtype), ids.where(legal, 0), legal


def finite(log_p: Tensor) -> Tensor:
    """log p with a finite value where p rounds to 0: 0 · −inf would be NaN."""
    return log_p.clamp(min=-1e4)


def entropy_of(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * finite(log_p)).sum(-1, keepdim=True)


class TokenLogp(torch.autograd.Function):
    """Allocates one [B, T, V] tensor, dlogits; autograd's own log_softmax keeps two more. Twice differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target_ids: Tensor,
        loss_mask: Tensor,
        softmax: Softmax,
        with_entropy: bool,
        inplace_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, target_ids, loss_mask)
        ctx.softmax, ctx.with_entropy, ctx.inplace_gradient = softmax, with_entropy, inplace_gradient
        ctx.set_materialize_grads(False)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logp = logits.new_zeros(loss_mask.shape, dtype=dtype)
        entropy = logits.new_zeros(loss_mask.shape if with_entropy else (0,), dtype=dtype)
        for index, rows, ids, legal in _chunks(logits, target_ids, loss_mask):
            log_p = softmax.scores(rows, softmax.temperature_of(index)).log_softmax(-1)
            logp[index] = log_p.gather(-1, ids).where(legal, torch.nan)[:, 0]
            if with_entropy:
                entropy[index] = entropy_of(log_p).where(legal, torch.nan)[:, 0]
        if not with_entropy:
            ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 5
        logits, target_ids, loss_mask = ctx.saved_tensors
        if grad_outputs[0] is None and grad_outputs[1] is None:
            return None, *nothing
        if ctx.inplace_gradient:
            dlogits = logits.detach().masked_fill_(~loss_mask[..., None], 0.0)
        else:
            dlogits = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        for index, rows, ids, legal in _chunks(logits, target_ids, loss_mask):
            temperature = ctx.softmax.temperature_of(index)
            z = ctx.softmax.scores(rows, temperature)
            p = z.softmax(-1)
            dlogp, dentropy = (None if g is None else g[index][:, None].where(legal, torch.nan) for g in grad_outputs)
            dz = torch.zeros_like(p) if dlogp is None else (p * -dlogp).scatter_add_(-1, ids, dlogp)
            if dentropy is not None:
                log_p = z.log_softmax(-1)
                dz = dz - dentropy * p * (finite(log_p) + entropy_of(log_p))
            dlogits[index] = ctx.softmax.back(dz, rows, temperature).to(logits.dtype)
        return dlogits, *nothing


def _whole(
    logits: Tensor, target_ids: Tensor, loss_mask: Tensor, softmax: Softmax, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """All rows at once, for torch.compile, which cannot trace a split that depends on data."""
    rows = logits.to(torch.promote_types(logits.dtype, torch.float32)).where(loss_mask[..., None], 0.0).flatten(0, 1)
    ids = target_ids.long().flatten()[:, None]
    counts = loss_mask.flatten()
    legal = (ids >= 0) & (ids < logits.shape[-1])
    log_p = softmax.scores(rows, softmax.temperature_of(slice(None))).log_softmax(-1)
    logp = log_p.gather(-1, ids.where(legal, 0)).where(legal, torch.nan)[:, 0].where(counts, 0.0)
    if not with_entropy:
        return logp.view(loss_mask.shape), logp.new_empty(0)
    entropy = entropy_of(log_p)[:, 0].where(counts, 0.0)
    return logp.view(loss_mask.shape), entropy.view(loss_mask.shape)


def token_logp(
    logits: Tensor,
    ref_logits: Tensor | None,
    target_ids: Tensor,
    loss_mask: Tensor,
    softmax: Softmax = Softmax(),  # noqa: B008
    with_entropy: bool = False,
    inplace_gradient: bool = False,
) -> TokenLogps:
    """float32 (float64 for float64 logits)."""
    if torch.compiler.is_compiling():
        logp, entropy = _whole(logits, target_ids, loss_mask, softmax, with_entropy)
    else:
        logp, entropy = TokenLogp.apply(logits, target_ids, loss_mask, softmax, with_entropy, inplace_gradient)
    ref_logp = logp.new_empty(0)
    if ref_logits is not None:
        ref_logp = token_logp(ref_logits.detach(), None, target_ids, loss_mask, softmax).logp
    return TokenLogps(logp, entropy, ref_logp)
