"""A scalar loss of token log-probs whose kernel returns its own derivative."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from humanline_fused.autograd.double_backward import refuse_double_backward


class LogpLoss(torch.autograd.Function):
    """``kernel(logp, *args, **kwargs)`` returns loss [], ∂loss/∂logp [B, T] and metrics; all but the loss detached."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Callable[..., tuple[Tensor, ...]],
        logp: Tensor,
        kwargs: dict[str, float],
        *args: Tensor | None,
    ) -> tuple[Tensor, ...]:
        loss, coefficient, *metrics = kernel(logp, *args, **kwargs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(coefficient)
        ctx.num_args = len(args)
        ctx.mark_non_differentiable(*metrics)
        return loss, *metrics

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        (coefficient,) = ctx.saved_tensors
        return None, coefficient * grad_outputs[0], None, *(None for _ in range(ctx.num_args))
