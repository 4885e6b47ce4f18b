"""AdamW and gradient clipping for many policies at once, each with a learning rate and a norm of its own."""

import torch
from torch import Tensor

from humanline_fused.tiny.policies import Parameters


class AdamW:
    """AdamW (arXiv 1711.05101) with betas .9 and .999 and epsilon 1e-8, as ``torch.optim.AdamW``.

    Args:
        parameters: of M policies; updated in place.
        learning_rate: [M].
        weight_decay: for all policies.
    """

    def __init__(self, parameters: Parameters, learning_rate: Tensor, weight_decay: float = 0.01) -> None:
        self.parameters, self.learning_rate, self.weight_decay = parameters, learning_rate, weight_decay
        self.first = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.second = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Parameters, scale: float = 1.0) -> None:
        """Update the parameters, with the learning rates times ``scale``."""
        self.steps += 1
        rate = (self.learning_rate * scale)[:, None, None]
        for name, parameter in self.parameters.items():
            first, second = self.first[name], self.second[name]
            first.lerp_(gradients[name], 1 - 0.9)
            second.mul_(0.999).addcmul_(gradients[name], gradients[name], value=1 - 0.999)
            deviation = (second / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
            parameter.mul_(1 - rate * self.weight_decay).sub_(rate * (first / (1 - 0.9**self.steps)) / deviation)


def clipped_gradients(loss: Tensor, parameters: Parameters, max_norm: Tensor | float) -> tuple[Parameters, Tensor]:
    """Return the gradients of each policy's loss, and their norms before clipping, [M].

    Args:
        loss: [M], each entry a function of one policy.
        parameters: leaves of the graph.
        max_norm: [M] or a number; gradients above it are scaled down to it.
    """
    gradients = torch.autograd.grad(loss.sum(), list(parameters.values()))
    norm = torch.stack([gradient.square().sum((1, 2)) for gradient in gradients]).sum(0).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1)[:, None, None]
    return {name: factor * gradient for name, gradient in zip(parameters, gradients, strict=True)}, norm
