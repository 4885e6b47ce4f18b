"""The losses once more in float64, straight from docs/math.md, each with a bound of what rounding may change.

Nothing is shared with the package. A bound is the first-order error of the computation in the dtype of accumulation:
``eps`` times the size of every intermediate value, through the slope of what follows.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from humanline_fused import HumanlineClamp, LMHead, Logits, TokenLogp

SAFETY = 4.0
"""Factor on all bounds, for second-order terms."""


@dataclass
class Bounded:
    """A value in float64 with a graph, and how far a result may be from it."""

    value: Tensor
    bound: Tensor


def accumulation(source: Any) -> torch.dtype:
    """Return the dtype in which scores are computed."""
    scores = (
        source.hidden if isinstance(source, LMHead) else source.logits if isinstance(source, Logits) else source.logp
    )
    return torch.promote_types(scores.dtype, torch.float32)


def scores(source: Any, ids: Tensor, mask: Tensor, eps: float, leaf: Tensor | None = None) -> tuple[Bounded, Bounded]:
    """Return log-prob and entropy of each token (equations 1 and 12), 0 where the mask is False."""
    if isinstance(source, TokenLogp):
        given = (source.logp.detach().double() if leaf is None else leaf).where(mask, 0.0)
        nothing = torch.zeros_like(given)
        return Bounded(given, eps * given.detach().abs()), Bounded(nothing, nothing)
    if isinstance(source, LMHead):
        hidden, weight = (source.hidden.detach().double() if leaf is None else leaf), source.weight.detach().double()
        x = hidden @ weight.T
        size = hidden.detach().abs() @ weight.abs().T
        if source.bias is not None:
            x, size = x + source.bias.double(), size + source.bias.double().abs()
        error = (hidden.shape[-1] + 2) * eps * size
    else:
        x = source.logits.detach().double() if leaf is None else leaf
        error = torch.zeros_like(x.detach())
    temperature = source.temperature
    if isinstance(temperature, Tensor):
        temperature = temperature.float().double().where(mask, 1.0)[..., None]
    z = source.scale * x
    if source.softcap is not None:
        z = source.softcap * (z / source.softcap).tanh()
    z = z / temperature
    size = z.detach().abs().where(z.detach().isfinite(), 0.0)
    error = 6 * eps * size + error.where(error.isfinite(), 0.0) * source.scale / temperature
    per_token = 2 * error.amax(-1) + eps * (8 + z.shape[-1])
    counted = mask[..., None]
    log_p = z.where(counted, 0.0).log_softmax(-1)
    chosen = log_p.gather(-1, ids.long().clamp(0, z.shape[-1] - 1)[..., None])[..., 0].where(mask, 0.0)
    p = log_p.exp()
    entropy = -(p * log_p.where(p > 0, 0.0)).sum(-1).where(mask, 0.0)
    bound = (per_token + eps * chosen.detach().abs()).where(mask & chosen.isfinite(), 0.0)
    spread = (p * log_p.where(p > 0, 0.0).abs()).detach().sum(-1)
    return Bounded(chosen, bound), Bounded(entropy, (4 * per_token * (1 + spread)).where(mask, 0.0))


@dataclass
class Ratios:
    """Log-ratios of tokens, clamped and raw (equations 2 and 3), and the tokens within rounding of a bound."""

    clamped: Tensor
    raw: Tensor
    bound: Tensor
    low: Tensor
    high: Tensor
    at_a_kink: bool


def ratios(policy: Bounded, reference: Bounded, mask: Tensor, clamp: HumanlineClamp | None, eps: float) -> Ratios:
    low, high = (clamp.log_epsilon_P, clamp.log_epsilon_R) if clamp else (-torch.inf, torch.inf)
    raw = (policy.value - reference.value.detach()).where(mask, 0.0)
    value = raw.detach()
    bound = SAFETY * (policy.bound + reference.bound + eps * value.abs()).where(mask & value.isfinite(), 0.0)
    near = [(value - side).abs() <= bound for side in (low, high) if abs(side) < torch.inf]
    kink = bool(sum(one.logical_and(mask).sum() for one in near))
    clamped = raw.clamp(low, high)
    bound = bound + eps * clamped.detach().abs().where(clamped.isfinite(), 0.0)  # the side itself is rounded
    return Ratios(clamped, raw, bound, (value < low) & mask, (value > high) & mask, kink)


def by_sequence(values: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Return the sum of each sequence, padded or packed."""
    if cu_seqlens is None:
        return values.sum(-1)
    parts = [values[0, start:end].sum() for start, end in pairwise(cu_seqlens.tolist())]
    return torch.stack(parts) if parts else values.new_zeros(0)


@dataclass
class Sums:
    """Sums of the clamped log-ratios of sequences, [B], with bounds, and how many tokens of each count."""

    value: Tensor
    bound: Tensor
    lengths: Tensor


def sums(given: Ratios, mask: Tensor, cu_seqlens: Tensor | None, eps: float) -> Sums:
    value = by_sequence(given.clamped, cu_seqlens)
    rounding = eps * (mask.shape[-1] + 1) * by_sequence(given.clamped.detach().abs(), cu_seqlens)
    lengths = by_sequence(mask.double(), cu_seqlens)
    return Sums(value, by_sequence(given.bound, cu_seqlens) + rounding, lengths)


def dpo(of: Sums, beta: float, label_smoothing: float, loss_type: str, eps: float) -> dict[str, Bounded]:
    """Equations 4 to 5c."""
    rewards = Bounded(beta * of.value, beta * of.bound + 2 * eps * (beta * of.value.detach()).abs())
    divisor = of.lengths.clamp(min=1) if loss_type in ("ipo", "sigmoid_norm") else 1.0
    value, bound = rewards.value / divisor, rewards.bound / divisor + eps * (rewards.value / divisor).detach().abs()
    pairs = len(value) // 2
    margin, error = value[:pairs] - value[pairs:], bound[:pairs] + bound[pairs:]
    error = error + eps * margin.detach().abs()
    match loss_type:
        case "ipo":
            losses = ((margin - 0.5) / beta) ** 2
            slope = 2 * (margin.detach() - 0.5).abs() / beta**2
            bounds = slope * error + (error / beta) ** 2 + 8 * eps * losses.detach() + slope * eps
        case "hinge":
            losses = (1 - margin).clamp(min=0)
            bounds = error + eps * (1 + margin.detach().abs())
        case _:
            log_sigmoid = torch.nn.functional.logsigmoid
            losses = -(1 - label_smoothing) * log_sigmoid(margin)
            if label_smoothing:
                losses = losses - label_smoothing * log_sigmoid(-margin)
            bounds = error + 8 * eps * (1 + margin.detach().abs())
    return {"rewards": rewards, "loss": _mean(losses, bounds, (of.lengths > 0).view(2, pairs).any(0), eps)}


def kto(
    of: Sums, desirable: Tensor, kl: float, beta: float, weights: tuple[float, float], eps: float
) -> dict[str, Bounded]:
    """Equations 6 to 8."""
    rewards = Bounded(beta * of.value, beta * of.bound + 2 * eps * (beta * of.value.detach()).abs())
    weight = torch.where(desirable, *(torch.tensor(w, dtype=torch.float64) for w in weights))
    sign = torch.where(desirable, 1.0, -1.0)
    losses = weight * (sign * (beta * kl - rewards.value)).sigmoid()
    error = rewards.bound + 4 * eps * (rewards.value.detach().abs() + beta * kl)
    return {"rewards": rewards, "loss": _mean(losses, weight * (error + 8 * eps), of.lengths > 0, eps)}


def reference_point(of: Sums, eps: float) -> Bounded:
    """z0, equation 7."""
    number = (of.lengths > 0).sum().clamp(min=1)
    size = of.value.detach().abs().sum()
    return Bounded(
        of.value.detach().sum().div(number).clamp(min=0), (of.bound.sum() + eps * (len(of.value) + 2) * size) / number
    )


def grpo(
    given: Ratios,
    mask: Tensor,
    advantages: Tensor,
    num_items: float | None,
    epsilon: tuple[float, float],
    beta: float,
    eps: float,
) -> dict[str, Bounded]:
    """Equations 9 to 11. ``advantages``: [B, T]."""
    low, high = 1 - epsilon[0], 1 + epsilon[1]
    ratio = given.clamped.exp()
    taken = torch.where(advantages >= 0, ratio.clamp(max=high), ratio.clamp(min=low))
    losses = -advantages * taken.where((advantages != 0) | ratio.isnan(), 1.0)
    size = (advantages * taken.detach()).abs().where(advantages != 0, 0.0)
    bounds = size * (2 * given.bound + 8 * eps)
    k3 = (torch.expm1(-given.raw) + given.raw).where(given.raw != -torch.inf, torch.inf)
    slope = torch.expm1(given.raw.detach().abs() + given.bound)
    exact = k3.detach().where(given.raw.detach().abs() > 1e-3, given.raw.detach() ** 2 / 2)  # expm1(-x) + x cancels
    error = slope * given.bound + given.bound**2 + 8 * eps * (exact + 1e-12)
    counted = max(int(mask.sum()), 1)
    number = counted if num_items is None else num_items
    if beta:
        losses, bounds, size = losses + beta * k3, bounds + beta * error, size + beta * exact
    overflows = torch.maximum(size, exact) > 1e37  # of float32, on the way
    bounds, error = (one.nan_to_num(nan=torch.inf).where(~overflows, torch.inf) for one in (bounds, error))
    losses, bounds, size, error = (one.where(mask, 0.0) for one in (losses, bounds, size, error))
    rounding = eps * (mask.numel() + 2)
    return {
        "loss": Bounded(losses.sum() / number, (bounds.sum() + rounding * size.sum()) / number),
        "kl": Bounded(k3.detach().where(mask, 0.0).sum() / counted, (error.sum() + rounding * exact.sum()) / counted),
    }


def _mean(losses: Tensor, bounds: Tensor, counts: Tensor, eps: float) -> Bounded:
    number = counts.sum().clamp(min=1)
    losses, bounds = losses.where(counts, 0.0), bounds.where(counts, 0.0)
    rounding = eps * (len(losses) + 2) * losses.detach().abs().sum()
    return Bounded(losses.sum() / number, (bounds.sum() + rounding) / number)
