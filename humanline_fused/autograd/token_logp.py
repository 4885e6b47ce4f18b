"""logits -> logp and entropy, with their gradient dlogits. Keeps two floats per row, not the probabilities."""

from typing import Any

import torch
from torch import Tensor

from humanline_fused.autograd.double_backward import refuse_double_backward
from humanline_fused.layer import TokenLogps
from humanline_fused.softmax import Softmax
from humanline_kernels.token_logp import token_logp_backward, token_logp_backward_, token_logp_forward


class TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ref_logits: Tensor | None,
        target_ids: Tensor,
        loss_mask: Tensor,
        temperature: Tensor | None,
        inverse_temperature: float,
        softcap: float | None,
        scale: float,
        with_entropy: bool,
        inplace_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        settings = inverse_temperature, softcap, scale
        logp, entropy, point, log2_total, ref_logp = token_logp_forward(
            logits, ref_logits, target_ids, loss_mask, temperature, *settings, with_entropy
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target_ids, loss_mask, temperature, point, log2_total, entropy)
        ctx.settings = settings
        ctx.with_entropy, ctx.inplace_gradient = with_entropy, inplace_gradient
        ctx.mark_non_differentiable(ref_logp, *(() if with_entropy else (entropy,)))
        return logp, entropy, ref_logp

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        logits, *rest, entropy = ctx.saved_tensors
        dlogp, dentropy = grad_outputs[0], grad_outputs[1] if ctx.with_entropy else None
        nothing = (None,) * 9
        if dlogp is None and dentropy is None:
            return None, *nothing
        dlogp = torch.zeros_like(entropy) if dlogp is None else dlogp.contiguous()
        if ctx.with_entropy:
            dentropy = torch.zeros_like(entropy) if dentropy is None else dentropy.contiguous()
        rows = logits, *rest, entropy if ctx.with_entropy else None
        if ctx.inplace_gradient:
            token_logp_backward_(dlogp, dentropy, *rows, *ctx.settings)
            return logits.detach(), *nothing
        return token_logp_backward(dlogp, dentropy, *rows, *ctx.settings), *nothing


def token_logp(
    logits: Tensor,
    ref_logits: Tensor | None,
    target_ids: Tensor,
    loss_mask: Tensor,
    softmax: Softmax = Softmax(),  # noqa: B008
    with_entropy: bool = False,
    inplace_gradient: bool = False,
) -> TokenLogps:
    """float32."""
    temperature, *settings = softmax
    logp, entropy, ref_logp = TokenLogp.apply(
        rows_in_a_piece(logits),
        None if ref_logits is None else rows_in_a_piece(ref_logits.detach()),
        target_ids.contiguous(),
        loss_mask.contiguous(),
        None if temperature is None else temperature.contiguous(),
        *settings,
        with_entropy,
        inplace_gradient,
    )
    return TokenLogps(logp, entropy, ref_logp)


def rows_in_a_piece(logits: Tensor) -> Tensor:
    """The logits, or a copy of them, with stride 1 over the vocabulary."""
    return logits if logits.stride(-1) == 1 else logits.contiguous()
