"""Humanline sampling: random rejection of tokens, whose gradient is stopped (docs/math.md, equations 23 to 26).

It is the stochastic original of humanline; the clamp is its practical form. Thresholds are compared as logarithms in
float64, because a draw of a Beta distribution with a small γ can be smaller than the smallest float.

Source: arXiv 2509.24207, section 4.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from humanline_fused.types import HumanlineSampling, Ranks


class LogMaxima(NamedTuple):
    """Logarithms of the largest ratio and of the largest inverse ratio, each ≥ 0, float64."""

    P: Tensor
    R: Tensor


class Rejected(NamedTuple):
    """Tokens whose gradient is stopped, [B, T], bool, False where the mask is.

    Attributes:
        low: their ratio is below its threshold, ``r < M_P B_P``.
        high: their inverse ratio is, ``1/r < M_R B_R``.
    """

    low: Tensor
    high: Tensor


def log_maxima(log_ratio: Tensor, loss_mask: Tensor, group: Ranks = None) -> LogMaxima:
    """Return ``log M_P = max(0, max_t ℓ_t)`` and ``log M_R = max(0, max_t −ℓ_t)`` over the tokens that count, [].

    Args:
        log_ratio: ℓ, [B, T], nats; no gradient flows.
        loss_mask: [B, T], bool.
        group: process group of the ranks whose tokens count; ``None`` is all ranks, ``"local"`` this rank alone.

    >>> log_maxima(torch.tensor([[-2.0, 1.0, 9.0]]), torch.tensor([[True, True, False]]))
    LogMaxima(P=tensor(1., dtype=torch.float64), R=tensor(2., dtype=torch.float64))
    """
    counted = log_ratio.detach().double().where(loss_mask, 0.0).flatten()
    both = torch.stack([torch.cat([side, side.new_zeros(1)]).amax() for side in (counted, -counted)])
    if group != "local" and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX, group=group)
    return LogMaxima(*both)


def acceptance(log_ratio: Tensor, log_maximum: Tensor | float, gamma: Tensor | float) -> Tensor:
    """Return ``P(r/M ≥ B) = (r/M)^γ``, at most 1, for ``B ~ Beta(γ, 1)`` (docs/math.md, equation 24), float64.

    The other side's is ``acceptance(-log_ratio, log_maximum, gamma)``; a token is kept with the product of both.

    >>> acceptance(torch.tensor([0.25]).log(), 0.0, 0.5)
    tensor([0.5000], dtype=torch.float64)
    """
    return (gamma * (log_ratio.double() - log_maximum).clamp(max=0)).exp()


def log_beta(
    shape: Sequence[int],
    gamma: Tensor | float,
    beta: Tensor | float = 1.0,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Return logarithms of draws from ``Beta(γ, β)``, float64, on the generator's device.

    Args:
        gamma, beta: numbers or tensors of ``shape``. γ = 0 is the limit, a draw of 0. β = 1 needs one uniform number
            for each draw: ``log B = log U / γ``.
        device: used without a generator.
    """
    how = {"dtype": torch.float64, "device": generator.device if generator is not None else device}
    if not isinstance(beta, Tensor) and beta == 1:
        return torch.rand(shape, generator=generator, **how).log() / gamma
    both = [torch.as_tensor(x, **how).expand(shape).contiguous() for x in (gamma, beta)]
    gamma_draw: Any = torch._standard_gamma  # pyright: ignore[reportPrivateImportUsage]  (public ones take no generator)
    x, y = (gamma_draw(concentration, generator=generator) for concentration in both)
    # torch's smallest draw is the smallest float, not 0.
    return (x.log() - (x + y).log()).masked_fill(both[0] == 0, -torch.inf)


def log_draws(shape: Sequence[int], sampling: HumanlineSampling, device: torch.device | None = None) -> Tensor:
    """Return log B_P and log B_R of tokens of a shape, [2, *shape], float64, on the generator's device."""
    sides = (sampling.gamma_P, sampling.beta_P), (sampling.gamma_R, sampling.beta_R)
    return torch.stack([log_beta(shape, gamma, beta, sampling.generator, device) for gamma, beta in sides])


def rejected(log_ratio: Tensor, loss_mask: Tensor, sampling: HumanlineSampling) -> Rejected:
    """Draw the tokens whose gradient is stopped (docs/math.md, equation 23).

    Args:
        log_ratio: ℓ, [B, T], nats. A token with NaN is not rejected, so that its NaN stays visible in the gradient.
        loss_mask: [B, T], bool.
    """
    if sampling.maxima is None:
        maxima = log_maxima(log_ratio, loss_mask, sampling.group)
    else:
        given = (torch.as_tensor(m, dtype=torch.float64, device=log_ratio.device) for m in sampling.maxima)
        maxima = LogMaxima(*(maximum.log() for maximum in given))
    draws = log_draws(log_ratio.shape, sampling, log_ratio.device) if sampling.draws is None else sampling.draws
    if draws.shape != (2, *log_ratio.shape):
        raise ValueError(f"draws: expected two for each token, {[2, *log_ratio.shape]}, got {list(draws.shape)}")
    below_P, below_R = draws.to(log_ratio.device)
    ratio = log_ratio.detach().double()
    return Rejected(
        low=loss_mask & (ratio - maxima.P < below_P),
        high=loss_mask & (-ratio - maxima.R < below_R),
    )


def detached_where(stopped: Tensor, values: Tensor) -> Tensor:
    """Return the same values, without a gradient where ``stopped`` is True.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> detached_where(torch.tensor([True, False]), x).sum().backward()
    >>> x.grad
    tensor([0., 1.])
    """
    return values.detach().where(stopped, values)
