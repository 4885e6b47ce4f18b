"""Metrics of a micro-batch as weighted sums, with the names of TRL and humanline."""

from typing import NamedTuple

import torch
from torch import Tensor

from humanline_fused.eager.k3 import k3_of
from humanline_fused.types import ClampedOutput


class Weighted(NamedTuple):
    """A sum and its divisor, both []; sums and divisors of micro-batches and ranks can be added."""

    total: Tensor
    weight: Tensor

    @classmethod
    def of(cls, mean: Tensor, number: int) -> "Weighted":
        """Return the sum and weight of a mean over ``number`` values."""
        weight = torch.full((), number, device=mean.device)
        return cls(mean * weight, weight)


def mean(values: Tensor, counts: Tensor | None = None) -> Weighted:
    """Return the mean of the values where ``counts`` is True; by default of all values."""
    counted = torch.ones_like(values, dtype=torch.bool) if counts is None else counts
    return Weighted(values.where(counted, 0.0).sum(), counted.sum())


def clamp_metrics(out: ClampedOutput, loss_mask: Tensor) -> dict[str, Weighted]:
    """Return ``humanline/*``: shares of unclamped and clamped tokens among the tokens that count."""
    return token_shares(
        loss_mask,
        {
            "humanline/unclamped": out.unclamped_fraction,
            "humanline/clamped_low": out.clamped_low_fraction,
            "humanline/clamped_high": out.clamped_high_fraction,
        },
    )


def token_shares(loss_mask: Tensor, shares: dict[str, Tensor]) -> dict[str, Weighted]:
    """Return the shares of a micro-batch, weighted with its number of tokens that count."""
    tokens = loss_mask.sum()
    return {name: Weighted(share * tokens, tokens) for name, share in shares.items()}


def pair_metrics(rewards: Tensor, logps: Tensor) -> dict[str, Weighted]:
    """Return the metrics of pairs.

    Args:
        rewards: [2P], implicit rewards against the loss's reference; chosen first.
        logps: [2P], log-probs of completions, nats.
    """
    chosen, rejected = rewards.detach().chunk(2)
    chosen_logps, rejected_logps = logps.detach().chunk(2)
    return {
        "rewards/chosen": mean(chosen),
        "rewards/rejected": mean(rejected),
        "rewards/accuracies": mean((chosen > rejected).float()),
        "rewards/margins": mean(chosen - rejected),
        "logps/chosen": mean(chosen_logps),
        "logps/rejected": mean(rejected_logps),
    }


def label_metrics(rewards: Tensor, logps: Tensor, desirable: Tensor) -> dict[str, Weighted]:
    """Return the metrics of labelled completions.

    Args:
        rewards: [B], implicit rewards against the loss's reference.
        logps: [B], log-probs of completions, nats.
        desirable: [B], bool.
    """
    metrics = {}
    for side, members in (("chosen", desirable), ("rejected", ~desirable)):
        metrics[f"rewards/{side}"] = mean(rewards.detach(), members)
        metrics[f"logps/{side}"] = mean(logps.detach(), members)
    return metrics


def distance(logp: Tensor, ref_logp: Tensor, loss_mask: Tensor) -> Weighted:
    """Return the mean k3 estimate over the tokens: ``exp(−ℓ) + ℓ − 1`` with ``ℓ = logp − ref_logp``.

    It is ≥ 0, and 0 where both agree. On completions that the policy did not sample it is a distance, not an unbiased
    estimate of KL(policy ‖ reference).
    """
    return Weighted(k3_of((logp - ref_logp).where(loss_mask, 0.0)).sum(), loss_mask.sum())


def with_margins(means: dict[str, float]) -> dict[str, float]:
    """Add ``rewards/margins`` of labelled completions: a difference of means, because their sides differ in number."""
    if "rewards/margins" in means or not {"rewards/chosen", "rewards/rejected"} <= means.keys():
        return means
    return means | {"rewards/margins": means["rewards/chosen"] - means["rewards/rejected"]}


def less_is_better(name: str) -> bool:
    """Return True for the name of a loss, of a distance, of a value of rejected completions, or of a share cut short.

    >>> less_is_better("eval_loss"), less_is_better("kl_initial"), less_is_better("eval_rewards_initial/margins")
    (True, True, False)
    """
    return name.endswith(("loss", "/rejected", "/clipped_ratio")) or name.removeprefix("eval_") in ("kl", "kl_initial")
