"""The k3 estimate of a KL divergence, accurate for log-ratios of any size (docs/math.md, equation 10)."""

from typing import Any

import torch
from torch import Tensor

NUM_TERMS = {torch.float32: 10, torch.float64: 17}
"""Terms of the series where |ℓ| < 1: the next is below half an epsilon of the sum."""


class K3(torch.autograd.Function):
    """``e^(−ℓ) + ℓ − 1`` of log-ratios ℓ, nats. Twice differentiable.

    Near 0 the three terms cancel: in float32 nothing is left of k3 = 5e-11 at ℓ = 1e-5. There it is
    ``x²/2 (1 + x/3 (1 + x/4 (1 + …)))`` with x = −ℓ. The slope is −expm1(x).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(log_ratio: Tensor) -> Tensor:
        x = -log_ratio
        near = x.abs() < 1
        y = x.where(near, 0.0)
        one = torch.ones_like(y)
        series = one
        for n in range(NUM_TERMS[x.dtype] + 1, 2, -1):
            series = torch.addcmul(one, series, y, value=1 / n)
        # The largest number in place of ∞: k3 of ℓ = −∞ is ∞, not ∞ − ∞.
        far = (x.exp() - 1) - x.clamp(max=torch.finfo(x.dtype).max)
        return (0.5 * y * y * series).where(near, far)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        (log_ratio,) = ctx.saved_tensors
        return grad_outputs[0] * -torch.expm1(-log_ratio)


def k3_of(log_ratio: Tensor) -> Tensor:
    """k3 of each log-ratio, ≥ 0, nats, with a graph.

    >>> k3_of(torch.tensor([0.0, 1e-4]))
    tensor([0.0000e+00, 4.9998e-09])
    """
    return K3.apply(log_ratio)
