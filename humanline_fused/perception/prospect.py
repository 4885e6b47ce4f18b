"""Prospect theory: subjective values, perceived probabilities and utility (docs/math.md, equations 18 to 22).

All functions compute in float64 and take batches: outcomes [..., n], and a number or a tensor [...] for the reference
point and for each γ, so that every example can have its own.

Sources: Tversky and Kahneman, *Advances in Prospect Theory*, Journal of Risk and Uncertainty 5 (1992), functions and
medians; arXiv 2509.24207, section 3, their use with language models.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Numbers = Tensor | Sequence[float] | float
"""Anything that ``torch.as_tensor`` makes a float64 tensor of."""

ALPHA = 0.88
"""Median exponent of the value function: sensitivity to an outcome diminishes with its size."""
LOSS_AVERSION = 2.25
"""Median λ: a loss counts so many times as much as a gain of the same size."""
GAMMA_GAINS = 0.61
"""Median γ⁺ of the perceived probability of gains."""
GAMMA_LOSSES = 0.69
"""Median γ⁻ of the perceived probability of losses."""
LOWEST_GAMMA = 0.28
"""A capacity is monotone for γ ≥ 0.2792, the root of γ^(1 − 2γ) = (1 − γ)^(2 − γ); below, a weight can be negative."""


def value(
    outcomes: Numbers, reference_point: Numbers = 0.0, *, alpha: float = ALPHA, loss_aversion: float = LOSS_AVERSION
) -> Tensor:
    """Subjective value ``v(z) = (z − z₀)^α`` of a gain, ``−λ (z₀ − z)^α`` of a loss (docs/math.md, equation 18).

    Args:
        outcomes: z, [..., n]; for a language model ``log π_θ(y|x) − log π_ref(y|x)``, nats.
        reference_point: z₀, a number or [...]; an outcome equal to it is a gain of 0.
        alpha: in (0, 1].
        loss_aversion: λ, > 0.

    Returns:
        [..., n], float64.

    >>> value([-1.0, 0.0, 1.0]).tolist()
    [-2.25, 0.0, 1.0]
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha: expected a number in (0, 1], got {alpha!r}")
    if not 0 < loss_aversion < float("inf"):
        raise ValueError(f"loss_aversion: expected a finite number > 0, got {loss_aversion!r}")
    gain = _float64(outcomes) - _per_example(reference_point)
    size = gain.abs() ** alpha
    return torch.where(gain >= 0, size, -loss_aversion * size)


def capacity(probability: Numbers, gamma: Numbers) -> Tensor:
    """Perceived probability ``Ω(a; γ) = a^γ / (a^γ + (1 − a)^γ)^(1/γ)`` (docs/math.md, equation 19).

    γ = 1 is the identity. Below it small probabilities are over-weighted and large ones under-weighted. Ω(0) = 0 and
    Ω(1) = 1 hold exactly.

    Args:
        probability: a, in [0, 1].
        gamma: γ, in [0.28, 1], broadcast against ``probability``. Below 0.2792 Ω is not monotone.

    Returns:
        The broadcast shape, float64.

    Raises:
        ValueError: a probability or γ lies outside its interval.

    >>> capacity([0.0, 0.01, 0.5, 1.0], GAMMA_GAINS).round(decimals=3).tolist()
    [0.0, 0.055, 0.421, 1.0]
    """
    a, gamma = _float64(probability), _gamma("gamma", gamma)
    if not bool(((a >= 0) & (a <= 1)).all()):
        raise ValueError(f"probability: expected numbers in [0, 1], got {_outside(a, 0, 1)}")
    return _capacity(a, gamma)


def decision_weights(
    outcomes: Numbers,
    probabilities: Numbers,
    reference_point: Numbers = 0.0,
    *,
    gamma_gains: Numbers = GAMMA_GAINS,
    gamma_losses: Numbers = GAMMA_LOSSES,
) -> Tensor:
    """Weight ω of each outcome in cumulative prospect theory (docs/math.md, equation 20).

    A gain has ``Ω⁺(P(Z ≥ z)) − Ω⁺(P(Z > z))``, a loss ``Ω⁻(P(Z ≤ z)) − Ω⁻(P(Z < z))``: both are counted from the
    extreme outcome. Weights of gains alone, or of losses alone, sum to 1. Those of mixed outcomes need not: 0.875 for a
    normal distribution around the reference point.

    Args:
        outcomes: z, [..., n], in any order. Equal outcomes share their weight by their order in the row.
        probabilities: [..., n] or [n], ≥ 0, with a sum of 1 over the last axis.
        reference_point: z₀, a number or [...].
        gamma_gains, gamma_losses: γ⁺ and γ⁻, numbers or [...], in [0.28, 1].

    Returns:
        [..., n], float64, ≥ 0.

    Raises:
        ValueError: no outcomes, shapes that do not fit, probabilities that are no distribution, or a γ outside its
            interval.

    >>> decision_weights([0.0, 100.0], [0.8, 0.2]).round(decimals=3).tolist()  # a chance of 20 % to win
    [0.739, 0.261]
    """
    z, p = _lottery(outcomes, probabilities)
    order = z.argsort(dim=-1, stable=True)
    z, p = z.gather(-1, order), p.gather(-1, order)
    gains = _capacity(_from_the_right(p), _per_example(_gamma("gamma_gains", gamma_gains)))
    losses = _capacity(_from_the_left(p), _per_example(_gamma("gamma_losses", gamma_losses)))
    gain = z >= _per_example(reference_point)
    weights = torch.where(gain, gains[..., :-1] - gains[..., 1:], losses[..., 1:] - losses[..., :-1]).clamp(min=0)
    return torch.empty_like(weights).scatter_(-1, order.expand_as(weights), weights)


def utility(
    outcomes: Numbers,
    probabilities: Numbers,
    reference_point: Numbers = 0.0,
    *,
    gamma_gains: Numbers = GAMMA_GAINS,
    gamma_losses: Numbers = GAMMA_LOSSES,
    alpha: float = ALPHA,
    loss_aversion: float = LOSS_AVERSION,
) -> Tensor:
    """Subjective utility ``u = Σ ω(z) v(z)`` of a lottery, [...], float64 (docs/math.md, equation 21).

    Arguments and errors are those of :func:`decision_weights` and :func:`value`.

    >>> round(utility([-1.0, 1.0], [0.5, 0.5]).item(), 3)  # a fair bet that most people refuse
    -0.601
    """
    weights = decision_weights(
        outcomes, probabilities, reference_point, gamma_gains=gamma_gains, gamma_losses=gamma_losses
    )
    return (weights * value(outcomes, reference_point, alpha=alpha, loss_aversion=loss_aversion)).sum(-1)


def utility_gap_bound(weights: Numbers, probabilities: Numbers, values: Numbers) -> Tensor:
    """Bound ``‖v‖_∞ √(2 KL(ω‖Q))`` on ``|Σ ω v − Σ Q v|``, [...], float64 (docs/math.md, equation 22).

    Proposition 3.4 of arXiv 2509.24207, solved for δ: Hölder's inequality, then Pinsker's. Pinsker's holds for
    distributions only, so ω must sum to 1: divide the weights of mixed outcomes by their sum first.

    Args:
        weights: ω, [..., n], ≥ 0, with a sum of 1.
        probabilities: Q, [..., n] or [n], ≥ 0, with a sum of 1. The bound is infinite where Q = 0 and ω > 0.
        values: v, [..., n] or [n].

    Raises:
        ValueError: ω or Q is no distribution, or shapes do not fit.

    >>> utility_gap_bound([1.0, 0.0], [0.5, 0.5], [1.0, -1.0]).round(decimals=3).item()  # the gap itself is 1
    1.177
    """
    v, omega = _lottery(values, weights, "weights", of="values")
    _, q = _lottery(values, probabilities, of="values")
    kl = (torch.xlogy(omega, omega) - torch.xlogy(omega, q)).sum(-1)
    return v.abs().amax(-1) * (2 * kl).clamp(min=0).sqrt()


def _float64(numbers: Numbers) -> Tensor:
    return torch.as_tensor(numbers, dtype=torch.float64)


def _per_example(numbers: Numbers) -> Tensor:
    """Return a number as it is and a tensor [...] as [..., 1], to meet outcomes [..., n]."""
    tensor = _float64(numbers)
    return tensor[..., None] if tensor.ndim else tensor


def _gamma(name: str, gamma: Numbers) -> Tensor:
    gamma = _float64(gamma)
    if not bool(((gamma >= LOWEST_GAMMA) & (gamma <= 1)).all()):
        raise ValueError(
            f"{name}: expected numbers in [{LOWEST_GAMMA}, 1] (below, perceived probability is not monotone), "
            f"got {_outside(gamma, LOWEST_GAMMA, 1)}"
        )
    return gamma


def _outside(numbers: Tensor, low: float, high: float) -> float:
    """Return the first number that is not in the interval, or is NaN."""
    return numbers[~((numbers >= low) & (numbers <= high))].flatten()[0].item()


def _lottery(
    outcomes: Numbers, probabilities: Numbers, name: str = "probabilities", of: str = "outcomes"
) -> tuple[Tensor, Tensor]:
    """Return outcomes and their distribution with one shape [..., n], float64."""
    z, p = _float64(outcomes), _float64(probabilities)
    if not z.ndim or not p.ndim or not z.shape[-1] or z.shape[-1] != p.shape[-1]:
        raise ValueError(f"{name}: expected one for each of n >= 1 {of}, got {list(p.shape)} for {list(z.shape)}")
    if bool(z.isnan().any()):
        raise ValueError(f"{of}: expected numbers, got NaN")
    if not bool((p >= 0).all()):
        raise ValueError(f"{name}: expected numbers >= 0, got {_outside(p, 0, float('inf'))}")
    kind = probabilities.dtype if isinstance(probabilities, Tensor) else torch.float64
    rounding = p.shape[-1] * torch.finfo(kind if kind.is_floating_point else torch.float64).eps
    total = p.sum(-1)
    wrong = ~((total - 1).abs() <= rounding)
    if bool(wrong.any()):
        raise ValueError(f"{name}: expected a sum of 1 over the last axis, got {total[wrong][0].item()}")
    return tuple(torch.broadcast_tensors(z, p))  # pyright: ignore[reportReturnType]


def _capacity(a: Tensor, gamma: Tensor) -> Tensor:
    return a**gamma / (a**gamma + (1 - a) ** gamma) ** (1 / gamma)


def _from_the_left(p: Tensor) -> Tensor:
    """``0, P(Z ≤ z₁), …, 1`` for sorted outcomes, [..., n + 1].

    The division makes the last sum exactly 1, also before outcomes of probability 0: Ω's slope is infinite there, and
    an error of 1e-16 in a sum would be one of 1e-10 in a weight.
    """
    sums = p.cumsum(-1)
    return torch.cat([torch.zeros_like(p[..., :1]), (sums / sums[..., -1:]).clamp(max=1)], dim=-1)


def _from_the_right(p: Tensor) -> Tensor:
    """``1, P(Z ≥ z₂), …, 0`` for sorted outcomes, [..., n + 1]."""
    return _from_the_left(p.flip(-1)).flip(-1)
