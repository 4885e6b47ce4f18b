"""Logits -> a loss. Its derivative per token meets grad_output in the backward kernel, without a launch between."""

from typing import Any

import torch
from torch import Tensor

from humanline_fused.autograd.double_backward import refuse_double_backward
from humanline_fused.autograd.logp_loss import loss_and_derivative
from humanline_fused.autograd.token_logp import rows_in_a_piece
from humanline_fused.layer import LossOfLogp, Result, ScoredLoss
from humanline_fused.softmax import Softmax
from humanline_kernels.token_logp import token_logp_backward, token_logp_backward_, token_logp_forward


class LogitsLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        loss_of_logp: LossOfLogp[Result],
        ref_logits: Tensor | None,
        ref_logp: Tensor | None,
        target_ids: Tensor,
        loss_mask: Tensor,
        softmax: Softmax,
        inplace_gradient: bool,
    ) -> tuple[Tensor, ScoredLoss[Result]]:
        temperature, *settings = softmax
        logp, _, point, log2_total, scored = token_logp_forward(
            logits, ref_logits, target_ids, loss_mask, temperature, *settings, False
        )
        reference = scored if ref_logp is None else ref_logp
        result, derivative = loss_and_derivative(loss_of_logp, logp, reference)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(derivative, logits, target_ids, loss_mask, temperature, point, log2_total)
        ctx.settings, ctx.inplace_gradient = settings, inplace_gradient
        # Autograd tracks the first output. The second is not a tensor, so it comes out as it is, detached.
        return result.loss, ScoredLoss(result, logp, reference)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        nothing = (None,) * 7
        grad_output = grad_outputs[0]
        if grad_output is None:
            return None, *nothing
        derivative, logits, *rows = ctx.saved_tensors
        if ctx.inplace_gradient:
            token_logp_backward_(derivative, None, logits, *rows, None, *ctx.settings, grad_output)
            return logits.detach(), *nothing
        return token_logp_backward(derivative, None, logits, *rows, None, *ctx.settings, grad_output), *nothing


def logits_loss(
    logits: Tensor,
    loss_of_logp: LossOfLogp[Result],
    ref_logits: Tensor | None,
    ref_logp: Tensor | None,
    target_ids: Tensor,
    loss_mask: Tensor,
    softmax: Softmax,
    inplace_gradient: bool,
) -> ScoredLoss[Result]:
    temperature = softmax.temperature
    loss, scored = LogitsLoss.apply(
        rows_in_a_piece(logits),
        loss_of_logp,
        None if ref_logits is None else rows_in_a_piece(ref_logits.detach()),
        ref_logp,
        target_ids.contiguous(),
        loss_mask.contiguous(),
        softmax._replace(temperature=None if temperature is None else temperature.contiguous()),
        inplace_gradient,
    )
    return scored._replace(result=scored.result._replace(loss=loss))
