"""Eager PyTorch as HALOs does it (ContextualAI/HALOs at aa02f66, ``train/trainers.py``), and its formulas of losses
around everybody's log-probs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, logsigmoid

SOURCE = "ContextualAI/HALOs at aa02f66, train/trainers.py (followed)"

LogProbs = Callable[..., Tensor]
"""Of a case, a batch, and its logits or its hidden states and weight: [B, T], nats, 0 where the mask is False."""


def dpo(log_ratio: Tensor, logp: Tensor, ref_logp: Tensor, batch: Any, settings: Mapping[str, float]) -> Tensor:
    chosen, rejected = log_ratio.sum(-1).chunk(2)
    return -logsigmoid(settings["beta"] * (chosen - rejected)).mean()


def kto(log_ratio: Tensor, logp: Tensor, ref_logp: Tensor, batch: Any, settings: Mapping[str, float]) -> Tensor:
    rewards = log_ratio.sum(-1)
    desirable = 1 - torch.sigmoid(settings["beta"] * (rewards - settings["kl"]))
    undesirable = 1 - torch.sigmoid(settings["beta"] * (settings["kl"] - rewards))
    return torch.where(batch.desirable, desirable, undesirable).mean()


def grpo(log_ratio: Tensor, logp: Tensor, ref_logp: Tensor, batch: Any, settings: Mapping[str, float]) -> Tensor:
    ratio, advantages, mask = log_ratio.exp(), batch.advantages.unsqueeze(-1), batch.loss_mask
    clipped = ratio.clamp(1 - settings["epsilon"], 1 + settings["epsilon"])
    k3 = torch.exp(ref_logp - logp) - (ref_logp - logp) - 1
    loss = -torch.min(advantages * ratio, advantages * clipped) + settings["beta"] * k3
    return (loss * mask).sum() / mask.sum()


def loss_on_log_probs(case: Any, logp: Tensor, ref_logp: Tensor, batch: Any) -> Tensor:
    """Of log-probs [B, T], 0 where they do not count."""
    log_ratio = (logp - ref_logp).clamp(-case.log_epsilon, case.log_epsilon)
    return case.objective.formula(log_ratio, logp, ref_logp, batch, case.objective.settings)


def with_loss(log_probs: LogProbs) -> Callable[[Any, Any], Tensor]:
    """The value of a case on a batch, from somebody's log-probs."""

    def value(case: Any, batch: Any) -> Tensor:
        logp = log_probs(case, batch, *batch.policy)
        if not case.has_reference:
            return case.of_log_probs(logp, batch)
        if case.given:
            return loss_on_log_probs(case, logp, batch.ref_logp, batch)
        with torch.no_grad():
            ref_logp = log_probs(case, batch, *batch.reference)
        return loss_on_log_probs(case, logp, ref_logp, batch)

    return value


def of_picked_rows(log_probs: Callable[[Tensor, Tensor, Tensor], Tensor]) -> LogProbs:
    """From log-probs [n] of hidden states [n, H], weight [V, H] and ids [n]: those of the rows that count alone."""

    def scored(case: Any, batch: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        mask = batch.loss_mask
        logp = log_probs(hidden[mask], weight, batch.target_ids[mask])
        return torch.zeros_like(mask, dtype=logp.dtype).masked_scatter(mask, logp)

    return scored


def log_probs(logits: Tensor, target_ids: Tensor, loss_mask: Tensor, softcap: float | None = None) -> Tensor:
    """[B, T], nats, in float32; 0 where the mask is False."""
    logits = logits.float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    labels = target_ids.masked_fill(~loss_mask, 0)
    return torch.gather(logits.log_softmax(-1), dim=2, index=labels.unsqueeze(2)).squeeze(2) * loss_mask


@with_loss
def halos(case: Any, batch: Any, scores: Tensor, weight: Tensor | None = None) -> Tensor:
    """Log-probs of the whole vocabulary, every row, in float32; of hidden states all logits [B, T, V] at once."""
    logits = scores if weight is None else linear(scores, weight)
    return log_probs(logits, batch.target_ids, batch.loss_mask, case.softcap)


@functools.lru_cache(maxsize=1)
def _compiled(case_name: str, shape: torch.Size) -> Callable[[Any, Any], Tensor]:
    torch.compiler.reset()  # or earlier compilations count as recompilations, which end in eager
    return torch.compile(halos, dynamic=False)


def compiled_halos(case: Any, batch: Any) -> Tensor:
    return _compiled(case.name, batch.logits.shape)(case, batch)
