"""logits -> logp, with dlogits as its gradient. Saves two floats per row; probabilities are never stored."""

from typing import Any

import torch
from torch import Tensor

from humanline_fused.autograd.double_backward import refuse_double_backward
from humanline_kernels.token_logp import token_logp_backward, token_logp_forward


class TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, ref_logits: Tensor | None, target_ids: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        logp, ref_logp, row_max, log_sumexp = token_logp_forward(logits, ref_logits, target_ids, loss_mask)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target_ids, loss_mask, row_max, log_sumexp)
        if ref_logp is not None:
            ctx.mark_non_differentiable(ref_logp)
        return logp, ref_logp

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None, None]:
        refuse_double_backward()
        dlogp = grad_outputs[0].contiguous()
        return token_logp_backward(dlogp, *ctx.saved_tensors), None, None, None


def token_logp(
    logits: Tensor, ref_logits: Tensor | None, target_ids: Tensor, loss_mask: Tensor
) -> tuple[Tensor, Tensor | None]:
    """``logp`` with a graph and ``ref_logp`` without one, [B, T], float32, nats."""
    return TokenLogp.apply(
        logits, None if ref_logits is None else ref_logits.detach(), target_ids.contiguous(), loss_mask.contiguous()
    )
