"""The same losses as others compute them, for comparison. Each peer is told by whose code it follows."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks.cases import LOG_EPSILON, Batch, Settings


def _halos_logps(logits: Tensor, target_ids: Tensor, loss_mask: Tensor) -> Tensor:
    distribution_logps = logits.float().log_softmax(-1)
    labels = target_ids.masked_fill(~loss_mask, 0)
    return torch.gather(distribution_logps, dim=2, index=labels.unsqueeze(2)).squeeze(2) * loss_mask


def halos(objective: str, logits: Tensor, batch: Batch, settings: Settings) -> Tensor:
    """ContextualAI/HALOs at aa02f66, ``train/trainers.py``: log-probs of the whole vocabulary, every row, eager."""
    mask = batch.loss_mask
    logp = _halos_logps(logits, batch.target_ids, mask)
    with torch.no_grad():
        ref_logp = _halos_logps(batch.ref_logits, batch.target_ids, mask)
    log_ratio = (logp - ref_logp).clamp(-LOG_EPSILON, LOG_EPSILON)
    if objective == "grpo":
        ratio, advantages = log_ratio.exp(), batch.advantages.unsqueeze(-1)
        clipped = ratio.clamp(1 - settings["epsilon"], 1 + settings["epsilon"])
        k3 = torch.exp(ref_logp - logp) - (ref_logp - logp) - 1
        loss = -torch.min(advantages * ratio, advantages * clipped) + settings["beta"] * k3
        return (loss * mask).sum() / mask.sum()
    rewards = log_ratio.sum(-1)
    if objective == "dpo":
        chosen, rejected = rewards.chunk(2)
        return -logsigmoid(settings["beta"] * (chosen - rejected)).mean()
    desirable = 1 - torch.sigmoid(settings["beta"] * (rewards - settings["kl"]))
    undesirable = 1 - torch.sigmoid(settings["beta"] * (settings["kl"] - rewards))
    return torch.where(batch.desirable, desirable, undesirable).mean()
