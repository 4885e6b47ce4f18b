"""GRPO from logits in one launch, which computes dlogits in forward."""

from typing import Any

import torch
from torch import Tensor

from humanline_fused.autograd.double_backward import refuse_double_backward
from humanline_fused.autograd.token_logp import rows_in_a_piece
from humanline_fused.layer import GRPOLoss, ScoredLoss
from humanline_fused.softmax import Softmax
from humanline_kernels.cache import num_programs
from humanline_kernels.dlogits import scale_dlogits_
from humanline_kernels.grpo_one_launch import grpo_one_launch as launch


class GRPOOneLaunch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        loss, dlogits, *rest = launch(logits, *arguments)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dlogits)
        ctx.num_arguments = len(arguments)
        ctx.mark_non_differentiable(*rest)
        return loss, *rest

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        grad_output = grad_outputs[0]
        if grad_output is None:
            return (None,) * (1 + ctx.num_arguments)
        try:
            (dlogits,) = ctx.saved_tensors
        except RuntimeError as error:
            raise RuntimeError(
                "one_launch: expected one backward, got a second; the gradient is no longer there. "
                "one_launch=False permits several"
            ) from error
        # Autograd counts this as a write to dlogits, so it detects a second backward even if grad_output is 1.
        scale_dlogits_(dlogits, grad_output)
        return dlogits, *(None for _ in range(ctx.num_arguments))


def grpo_one_launch(
    logits: Tensor,
    ref_logits: Tensor | None,
    ref_logp: Tensor | None,
    target_ids: Tensor,
    loss_mask: Tensor,
    softmax: Softmax,
    advantages: Tensor,
    num_items_in_batch: Tensor | None,
    *,
    epsilon: float,
    epsilon_high: float,
    beta: float,
    log_epsilon_P: float,
    log_epsilon_R: float,
) -> ScoredLoss[GRPOLoss]:
    temperature, *settings = softmax
    loss, logp, scored, metrics = GRPOOneLaunch.apply(
        rows_in_a_piece(logits),
        None if ref_logits is None else rows_in_a_piece(ref_logits.detach()),
        None if ref_logp is None else ref_logp.contiguous(),
        target_ids.contiguous(),
        loss_mask.contiguous(),
        None if temperature is None else temperature.contiguous(),
        advantages,
        num_items_in_batch,
        num_programs(logits),
        *settings,
        epsilon,
        epsilon_high,
        beta,
        log_epsilon_P,
        log_epsilon_R,
    )
    return ScoredLoss(GRPOLoss(loss, *metrics.unbind()), logp, scored if ref_logp is None else ref_logp)
