"""Log-prob of each target, entropy of each row, and their derivatives (docs/math.md, equations 1, 12 to 14)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 2**20}
"""What is computed at once: on a CPU as much as stays in a core's cache, elsewhere 256 MiB."""


class Softmax(NamedTuple):
    """How logits become the scores z of their softmax: ``cap(scale · x) · inverse_temperature / temperature``."""

    temperature: Tensor | None
    inverse_temperature: float
    softcap: float | None
    scale: float

    def scores(self, rows: Tensor, temperature: Tensor | None) -> Tensor:
        rows = rows if self.scale == 1 else rows * self.scale
        if self.softcap is not None:
            rows = (rows / self.softcap).tanh() * self.softcap
        return rows if temperature is None else rows / temperature

    def slope(self, rows: Tensor, temperature: Tensor | None) -> Tensor | float:
        """∂z/∂x."""
        slope = self.scale if temperature is None else self.scale / temperature
        if self.softcap is None:
            return slope
        return (1 - (rows * (self.scale / self.softcap)).tanh().square()) * slope

    def of(self, index: tuple[Tensor, ...], like: Tensor) -> Tensor | None:
        """The temperature of some tokens, [n, 1], or None for 1."""
        if self.temperature is not None:
            return self.temperature[index][:, None].to(like.dtype) / self.inverse_temperature
        return None if self.inverse_temperature == 1 else torch.full_like(like[:, :1], 1 / self.inverse_temperature)


def _chunks(
    logits: Tensor, target_ids: Tensor, loss_mask: Tensor
) -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]]:
    """Positions, rows, ids (0 for an illegal one) and legality of the tokens that count, a few at a time.

    The other rows are never read.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    num_rows = max(1, CHUNK_BYTES.get(logits.device.type, 2**28) // (logits.shape[-1] * dtype.itemsize))
    for positions in loss_mask.nonzero().split(num_rows):
        index = positions.unbind(1)
        ids = target_ids[index].long()[:, None]
        legal = (ids >= 0) & (ids < logits.shape[-1])
        yield index, logits[index].to(dtype), ids.where(legal, 0), legal


def _entropy(log_p: Tensor) -> Tensor:
    return -torch.special.xlogy(log_p.exp(), log_p.exp()).sum(-1, keepdim=True)


class TokenLogp(torch.autograd.Function):
    """Holds no [B, T, V] tensor but dlogits, where autograd's own log_softmax holds two more. Twice differentiable."""

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
            log_p = softmax.scores(rows, softmax.of(index, rows)).log_softmax(-1)
            logp[index] = log_p.gather(-1, ids).where(legal, torch.nan)[:, 0]
            if with_entropy:
                entropy[index] = _entropy(log_p).where(legal, torch.nan)[:, 0]
        if not with_entropy:
            ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 5
        logits, target_ids, loss_mask = ctx.saved_tensors
        if grad_outputs[0] is None and grad_outputs[1] is None:
            return None, *nothing
        dlogits = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        for index, rows, ids, legal in _chunks(logits, target_ids, loss_mask):
            temperature = ctx.softmax.of(index, rows)
            log_p = ctx.softmax.scores(rows, temperature).log_softmax(-1)
            drows = torch.zeros_like(rows)
            if grad_outputs[0] is not None:
                dlogp = grad_outputs[0][index][:, None].where(legal, torch.nan)
                drows = (log_p.exp() * -dlogp).scatter_add(-1, ids, dlogp)
            if ctx.with_entropy and grad_outputs[1] is not None:
                dentropy = grad_outputs[1][index][:, None].where(legal, torch.nan)
                p = log_p.exp()
                drows = drows - dentropy * (torch.special.xlogy(p, p) + p * _entropy(log_p))
            dlogits[index] = (drows * ctx.softmax.slope(rows, temperature)).to(logits.dtype)
        if ctx.inplace_gradient:
            logits.detach().copy_(dlogits)
            return logits.detach(), *nothing
        return dlogits, *nothing


def token_logp(
    logits: Tensor,
    ref_logits: Tensor | None,
    target_ids: Tensor,
    loss_mask: Tensor,
    temperature: Tensor | None = None,
    inverse_temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    with_entropy: bool = False,
    inplace_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """``logp`` and ``entropy`` with a graph and ``ref_logp`` without one, [B, T]; [0] if not asked for.

    float32 (float64 for float64 logits), nats.
    """
    softmax = Softmax(temperature, inverse_temperature, softcap, scale)
    logp, entropy = TokenLogp.apply(logits, target_ids, loss_mask, softmax, with_entropy, inplace_gradient)
    if ref_logits is None:
        return logp, entropy, logp.new_empty(0)
    ref_logp, _ = TokenLogp.apply(ref_logits.detach(), target_ids, loss_mask, softmax, False, False)
    return logp, entropy, ref_logp
