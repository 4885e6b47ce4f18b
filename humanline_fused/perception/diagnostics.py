"""Diagnostics of Assumptions 4.1 and 4.3 on scored data (arXiv 2509.24207): are the data the reference's own samples?

Surplus surprisal needs the reference's log-probs and entropies alone. Effective sample size, Pareto k, tail mass and
clamp share need also the log-probs of the model that wrote the data.

All functions compute in float64. ``counts`` is the mask of the tokens that count; None counts all.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, median

import torch
from torch import Tensor

from humanline_fused.types import PAPER_CLAMP, HumanlineClamp

FEWEST_WEIGHTS = 25
"""Smallest sample whose largest fifth has the 5 weights that a fit of the tail needs."""


SURPLUS_RISE = 0.1
"""Nats per token. Chosen on runs that no result is counted on: the reward of synced runs peaks as the surplus crosses
0.15 to 0.4, and the windows of :func:`reference_left` lag behind (``python -m benchmarks paper drift``)."""

WINDOW = 5
"""Log lines whose surplus is averaged."""

STANDARD_ERRORS = 4
"""A smaller rise is taken for noise: a run has hundreds of log lines, and each is judged."""


def surplus_surprisal(logp: Tensor, entropy: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean of ``−log π_ref(y_t) − H(π_ref)`` over the tokens, nats per token.

    Its expectation is 0 if the reference sampled the data, and ``KL(q ‖ π_ref) + H(q) − H(π_ref)`` per token if ``q``
    did. It needs no log-probs of ``q``.

    Args:
        logp: log-probs of the data under the reference, any shape, nats.
        entropy: entropy of the reference at the same tokens, nats.

    Returns:
        [], float64.

    >>> half = torch.tensor([0.5]).log()
    >>> round(surplus_surprisal(half, -half).item(), 6), round(surplus_surprisal(2 * half, -half).item(), 6)
    (0.0, 0.693147)
    """
    return _mean("surplus surprisal", -logp.double() - entropy.double(), counts)


def reference_left(surplus: Sequence[float]) -> bool:
    """Return whether a moving reference has left the data: their surplus surprisal under it rose.

    The mean of the last five values exceeds that of the first five by ``SURPLUS_RISE``, and by four standard errors of
    such a difference. Their noise is measured by second differences, which a steady rise leaves small.

    Args:
        surplus: surplus surprisal of a run's log lines so far, nats per token. Fewer than ten are not judged.

    >>> reference_left([0.0] * 10 + [0.2] * 5), reference_left([0.5] * 15)
    (True, False)
    """
    if len(surplus) < 2 * WINDOW:
        return False
    deviation = median(map(abs, _bends(surplus))) / (NormalDist().inv_cdf(0.75) * math.sqrt(6))
    rise = fmean(surplus[-WINDOW:]) - fmean(surplus[:WINDOW])
    return rise > max(SURPLUS_RISE, STANDARD_ERRORS * deviation * math.sqrt(2 / WINDOW))


def policy_left(drift: Sequence[float], syncs: int) -> bool:
    """Return whether a policy has left the data, so that the next sync takes the reference there too.

    The last drift exceeds ``SURPLUS_RISE``, and four of its standard errors. It is a sum of differences, one for each
    sync and one since the last, and each adds its noise. That is measured by second differences: of independent noise
    they have 6 times its variance, of its sum twice; the smaller number is taken, which is never too sure.

    Args:
        drift: :func:`data_drift` of a run's log lines so far, nats per token. Fewer than ten are not judged.
        syncs: number of syncs so far.

    >>> rising = [0.0] * 10 + [0.03, 0.06, 0.09, 0.12]
    >>> policy_left(rising, syncs=14), policy_left(rising[:-1], syncs=13), policy_left([0.2, -0.1] * 10, syncs=1)
    (True, False, False)
    """
    if len(drift) < 2 * WINDOW:
        return False
    variance = fmean(bend**2 for bend in _bends(drift)) / 2
    differences = 1 + min(syncs, len(drift))
    return drift[-1] > max(SURPLUS_RISE, STANDARD_ERRORS * math.sqrt(variance * differences))


def _bends(series: Sequence[float]) -> list[float]:
    """Return the second differences."""
    return [a - 2 * b + c for a, b, c in zip(series, series[1:], series[2:], strict=False)]


def mean_entropy(entropy: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean entropy over the tokens, nats per token, [], float64."""
    return _mean("entropy", entropy, counts)


def mean_ratio(log_ratio: Tensor, counts: Tensor | None = None) -> Tensor:
    """``E_data[π_θ / π_ref]`` over the tokens, of unclamped log-ratios, [], float64.

    Its expectation is 1 for every policy if the reference sampled the data (Assumption 4.1).

    >>> round(mean_ratio(torch.tensor([0.5, 1.5]).log()).item(), 6)
    1.0
    """
    return _mean("mean ratio", log_ratio.double().exp(), counts)


def data_drift(logp: Tensor, start_logp: Tensor, counts: Tensor | None = None) -> Tensor:
    """Drop of the data's mean log-prob since the start, nats per token, [], float64; above 0: less likely than then.

    Args:
        logp, start_logp: log-probs of the same tokens now and at the start, nats.
    """
    return _mean("data drift", start_logp.double() - logp.double(), counts)


def sequence_means(values: Tensor, counts: Tensor) -> Tensor:
    """Mean over the tokens of each sequence, without the sequences in which no token counts: [B, T] to [n], float64."""
    number = counts.sum(-1)
    _enough("sequences", int((number > 0).sum()))
    return (values.double().where(counts, 0.0).sum(-1) / number)[number > 0]


def quartiles(values: Tensor) -> Tensor:
    """Lower quartile, median and upper quartile, interpolated linearly, [3], float64."""
    _enough("values", values.numel())
    return (
        values.double().flatten().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=values.device))
    )


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """``(Σ w)² / (n Σ w²)``, the share of the sample that importance weighting leaves, in (0, 1], float64.

    Lognormal weights of scale s leave ``exp(−s²)`` (Kong 1992).

    Args:
        log_weights: ``log π_ref(y) − log q(y)`` of each sequence, [n]; a constant added to all does not matter.

    >>> round(effective_sample_size(torch.tensor([1.0, 1.0, 0.0, 0.0]).log()).item(), 6)
    0.5
    """
    weights = log_weights.double().flatten()
    _enough("weights", weights.numel())
    return (2 * weights.logsumexp(0) - (2 * weights).logsumexp(0)).exp() / weights.numel()


def pareto_k(log_weights: Tensor) -> float:
    """Shape of a generalised Pareto distribution fitted to the largest importance weights.

    Above 1/2 their variance is infinite; above 0.7 a weighted mean is not to be trusted at any practical sample size.

    Args:
        log_weights: as :func:`effective_sample_size`.

    Returns:
        The shape, with the weak prior of PSIS towards 0.5; −inf if the largest weights are all equal.

    Raises:
        ValueError: fewer than 25 weights.

    Source: Vehtari et al. 2024, Pareto smoothed importance sampling (JMLR 25:72), sections 3 and 4; the fit is Zhang &
    Stephens 2009, Technometrics 51(3).
    """
    weights = log_weights.double().flatten().sort().values
    _enough("weights", len(weights), FEWEST_WEIGHTS)
    in_tail = math.ceil(min(len(weights) / 5, 3 * math.sqrt(len(weights))))
    weights = (weights - weights[-1]).clamp(min=-700.0).exp()
    excess = weights[-in_tail:] - weights[-in_tail - 1]
    return -math.inf if excess[-1] == 0 else _generalised_pareto_shape(excess.clamp(min=1e-300))


def _generalised_pareto_shape(excess: Tensor) -> float:
    """Posterior mean of the shape, for sorted values > 0 above the threshold."""
    number = len(excess)
    grid = 30 + math.isqrt(number)
    points = torch.arange(1, grid + 1, dtype=torch.float64, device=excess.device) - 0.5
    quarter = excess[int(number / 4 + 0.5) - 1]
    b = 1 / excess[-1] + (1 - (grid / points).sqrt()) / (3 * quarter)
    shapes = torch.log1p(-b[:, None] * excess).mean(1)
    profile = number * ((-b / shapes).log() - shapes - 1)
    posterior = (b * profile.softmax(0)).sum()
    shape = torch.log1p(-posterior * excess).mean().item()
    return (number * shape + 10 * 0.5) / (number + 10)


def clamp_share(log_ratio: Tensor, counts: Tensor | None = None, clamp: HumanlineClamp = PAPER_CLAMP) -> Tensor:
    """Share of the data's tokens whose log-ratio lies outside the bounds: the clamp gives them no gradient.

    >>> clamp_share(torch.tensor([-2.0, -1.5, 0.0, 1.6])).item()
    0.5
    """
    return _mean("clamp share", _outside(log_ratio, clamp), counts)


def tail_mass(log_ratio: Tensor, counts: Tensor | None = None, clamp: HumanlineClamp = PAPER_CLAMP) -> Tensor:
    """Probability under the reference that a token's log-ratio lies outside the bounds (Assumption 4.3), [], float64.

    The tokens are the source's; each is weighted with its ratio ``π_ref / q``, and the weights are normalised.

    >>> round(tail_mass(torch.tensor([0.5, 8.0]).log()).item(), 4)
    0.9412
    """
    ratio = log_ratio.double().exp()
    return _mean("tail mass", ratio * _outside(log_ratio, clamp), counts) / _mean("tail mass", ratio, counts)


def _outside(log_ratio: Tensor, clamp: HumanlineClamp) -> Tensor:
    return (log_ratio < clamp.log_epsilon_P) | (log_ratio > clamp.log_epsilon_R)


def _mean(name: str, values: Tensor, counts: Tensor | None) -> Tensor:
    values = values.double()
    if counts is not None:
        if counts.shape != values.shape or counts.dtype != torch.bool:
            raise ValueError(
                f"{name}: expected a bool mask {list(values.shape)}, got {counts.dtype} {list(counts.shape)}"
            )
        values = values[counts]
    _enough(f"{name}: tokens that count", values.numel())
    return values.mean()


def _enough(what: str, number: int, fewest: int = 1) -> None:
    if number < fewest:
        raise ValueError(f"{what}: expected at least {fewest}, got {number}")
