"""Autograd for a scalar loss of token log-probs whose kernel returns the derivative too."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from humanline_fused.autograd.double_backward import refuse_double_backward
from humanline_fused.layer import LossOfLogp, Result


class LogpLoss(torch.autograd.Function):
    """``kernel(logp, *arguments)`` returns loss [], ∂loss/∂logp [B, T] and metrics, all detached."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Callable[..., tuple[Tensor, ...]], logp: Tensor, *arguments: Any
    ) -> tuple[Tensor, ...]:
        loss, coefficient, *metrics = kernel(logp, *arguments)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(coefficient)
        ctx.num_arguments = len(arguments)
        ctx.mark_non_differentiable(*metrics)
        return loss, *metrics

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        (coefficient,) = ctx.saved_tensors
        dlogp = None if grad_outputs[0] is None else coefficient * grad_outputs[0]
        return None, dlogp, *(None for _ in range(ctx.num_arguments))


def logp_loss(
    kernel: Callable[..., tuple[Tensor, ...]], logp: Tensor, *arguments: Any, options: tuple[str, ...] = ()
) -> tuple[Tensor, ...]:
    """The loss with a graph, and detached metrics, of ``kernel(logp, *arguments, needs_gradient, *options)``."""
    # Read here: inside forward grad mode is always off.
    needs_gradient = torch.is_grad_enabled() and logp.requires_grad
    return LogpLoss.apply(kernel, logp.contiguous(), *arguments, needs_gradient, *options)


def loss_and_derivative(loss_of_logp: LossOfLogp[Result], logp: Tensor, ref_logp: Tensor) -> tuple[Result, Tensor]:
    """The result of a loss by :func:`logp_loss`, detached, and ∂loss/∂logp, which its kernel has computed already."""
    # Under the caller's hooks (checkpoint, save_on_cpu) the derivative would be moved, or computed again.
    kept = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.enable_grad(), kept:
        result = loss_of_logp(logp.detach().requires_grad_(), ref_logp)
        node: Any = result.loss.grad_fn
        (derivative,) = node.saved_tensors
    return result._replace(loss=result.loss.detach()), derivative


def boundaries(loss_mask: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """``cu_seqlens`` [B + 1]: as given, or the bounds of padded sequences, T tokens each."""
    if cu_seqlens is not None:
        return cu_seqlens.contiguous()
    B, T = loss_mask.shape
    if T == 0:
        return torch.zeros(B + 1, dtype=torch.long, device=loss_mask.device)
    return torch.arange(0, B * T + 1, T, device=loss_mask.device)
