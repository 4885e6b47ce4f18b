"""What each objective takes from a batch, and which metrics it reports (TRL's names, and humanline's)."""

from typing import Any

import torch
from torch import Tensor

from humanline_fused.functional import dpo_loss, grpo_loss, kto_loss
from humanline_fused.scores import Scores, TokenLogp
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.batch import Batch
from humanline_fused.training.run.metrics import Weighted
from humanline_fused.types import DPOOutput, GRPOOutput, KTOOutput

Output = DPOOutput | KTOOutput | GRPOOutput


def compute_loss(
    config: HumanlineConfig,
    batch: Batch,
    policy: Scores,
    target_ids: Tensor,
    loss_mask: Tensor,
    *,
    kl: Tensor | None = None,
    num_items: Tensor | None = None,
) -> Output:
    """The configured loss of one micro-batch.

    Args:
        batch: with ``ref_logp`` [B, T].
        policy, target_ids, loss_mask: as :func:`humanline_fused.dpo_loss`.
        kl: KTO's reference point z0, [], nats.
        num_items: what GRPO's sum over tokens is divided by, []; None: the tokens of this micro-batch.
    """
    rows = policy, TokenLogp(batch["ref_logp"]), target_ids, loss_mask
    common: dict[str, Any] = {"beta": config.beta, "clamp": config.humanline_clamp, "impl": config.impl}
    if config.objective == "dpo":
        return dpo_loss(*rows, label_smoothing=config.label_smoothing, **common)
    if config.objective == "kto":
        assert kl is not None
        weights = {"desirable_weight": config.desirable_weight, "undesirable_weight": config.undesirable_weight}
        return kto_loss(*rows, batch["desirable"], kl=kl, **weights, **common)
    bounds = {"epsilon": config.epsilon, "epsilon_high": config.epsilon_high}
    return grpo_loss(*rows, batch["advantages"], num_items_in_batch=num_items, **bounds, **common)


def _mean(values: Tensor, counts: Tensor | None = None) -> Weighted:
    counted = torch.ones_like(values, dtype=torch.bool) if counts is None else counts
    return values.where(counted, 0.0).sum(), counted.sum()


def report(batch: Batch, out: Output, loss_mask: Tensor) -> dict[str, Weighted]:
    """The metrics of one micro-batch as sums with their weights.

    ``rewards/*`` are against the reference that the loss saw, ``logps/*`` are sums over a completion, nats;
    ``humanline/*`` are shares of the tokens that count.
    """
    tokens = loss_mask.sum()
    shares = {
        "humanline/unclamped": out.unclamped_fraction,
        "humanline/clamped_low": out.clamped_low_fraction,
        "humanline/clamped_high": out.clamped_high_fraction,
    }
    logps = out.logp.sum(-1)
    metrics: dict[str, Weighted] = {}
    match out:
        case DPOOutput():
            chosen, rejected = out.rewards.chunk(2)
            chosen_logps, rejected_logps = logps.chunk(2)
            metrics["loss"] = out.loss * len(chosen), torch.full((), len(chosen), device=tokens.device)
            metrics["rewards/chosen"] = _mean(chosen)
            metrics["rewards/rejected"] = _mean(rejected)
            metrics["rewards/accuracies"] = _mean((chosen > rejected).float())
            metrics["rewards/margins"] = _mean(chosen - rejected)
            metrics["logps/chosen"] = _mean(chosen_logps)
            metrics["logps/rejected"] = _mean(rejected_logps)
        case KTOOutput():
            desirable = batch["desirable"]
            count = torch.full((), len(desirable), device=tokens.device)
            metrics["loss"] = out.loss * count, count
            metrics["kl"] = out.kl * count, count
            for side, members in (("chosen", desirable), ("rejected", ~desirable)):
                metrics[f"rewards/{side}"] = _mean(out.rewards, members)
                metrics[f"logps/{side}"] = _mean(logps, members)
        case GRPOOutput():
            metrics["loss"] = out.loss * tokens, tokens
            shares["kl"] = out.kl
            shares["clip_ratio/low_mean"] = out.clip_low_fraction
            shares["clip_ratio/high_mean"] = out.clip_high_fraction
            shares["clip_ratio/region_mean"] = out.clip_fraction
    return metrics | {name: (share * tokens, tokens) for name, share in shares.items()}


def kl_to(out: Output, loss_mask: Tensor) -> Weighted:
    """k3 of the reference against the policy, ``exp(d) - d - 1`` with ``d = ref_logp - logp``, summed over the tokens.

    On completions that the policy did not sample it is a distance, ≥ 0 and 0 where both agree, and no unbiased estimate
    of KL(policy ‖ reference).
    """
    difference = (out.ref_logp - out.logp).where(loss_mask, 0.0)
    return (torch.expm1(difference) - difference).sum(), loss_mask.sum()


def with_margins(means: dict[str, float]) -> dict[str, float]:
    """Adds KTO's ``rewards/margins``: its two sides have different counts, so only their means can be compared."""
    if "rewards/margins" in means or not {"rewards/chosen", "rewards/rejected"} <= means.keys():
        return means
    return means | {"rewards/margins": means["rewards/chosen"] - means["rewards/rejected"]}
