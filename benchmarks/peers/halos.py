"""Eager PyTorch as HALOs does it, and the formulas around everybody's log-probs."""

import functools

import torch
from torch import Tensor
from torch.nn.functional import linear, logsigmoid

from benchmarks.kernels.cases import Case, Targets
from benchmarks.kernels.head import HeadBatch, HeadCase
from benchmarks.kernels.logits import Batch

HALOS = "ContextualAI/HALOs at aa02f66, train/trainers.py (followed)"


def loss_on_log_probs(case: Case, logp: Tensor, ref_logp: Tensor, batch: Targets) -> Tensor:
    """ContextualAI/HALOs at aa02f66, ``train/trainers.py``; log-probs [B, T], 0 where they do not count."""
    mask, settings = batch.loss_mask, case.settings
    log_ratio = (logp - ref_logp).clamp(-case.log_epsilon, case.log_epsilon)
    if case.operation == "grpo":
        ratio, advantages = log_ratio.exp(), batch.advantages.unsqueeze(-1)
        clipped = ratio.clamp(1 - settings["epsilon"], 1 + settings["epsilon"])
        k3 = torch.exp(ref_logp - logp) - (ref_logp - logp) - 1
        loss = -torch.min(advantages * ratio, advantages * clipped) + settings["beta"] * k3
        return (loss * mask).sum() / mask.sum()
    rewards = log_ratio.sum(-1)
    if case.operation == "dpo":
        chosen, rejected = rewards.chunk(2)
        return -logsigmoid(settings["beta"] * (chosen - rejected)).mean()
    desirable = 1 - torch.sigmoid(settings["beta"] * (rewards - settings["kl"]))
    undesirable = 1 - torch.sigmoid(settings["beta"] * (settings["kl"] - rewards))
    return torch.where(batch.desirable, desirable, undesirable).mean()


def log_probs(logits: Tensor, batch: Targets, softcap: float | None = None) -> Tensor:
    """[B, T], nats, in float32; 0 where the mask is False."""
    logits = logits.float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    labels = batch.target_ids.masked_fill(~batch.loss_mask, 0)
    return torch.gather(logits.log_softmax(-1), dim=2, index=labels.unsqueeze(2)).squeeze(2) * batch.loss_mask


def on_logits(case: Case, logits: Tensor, batch: Batch) -> Tensor:
    """Log-probs of the whole vocabulary, every row, in float32."""
    logp = log_probs(logits, batch, case.softcap)
    if not case.has_reference:
        return logp
    with torch.no_grad():
        ref_logp = log_probs(batch.ref_logits, batch, case.softcap)
    return loss_on_log_probs(case, logp, ref_logp, batch)


def on_hidden_states(case: HeadCase, batch: HeadBatch) -> Tensor:
    """A linear layer, whose logits [B, T, V] are there at once, and the same on those."""
    logp = log_probs(linear(batch.hidden, batch.weight), batch, case.softcap)
    if not case.has_reference:
        return logp
    ref_logp = batch.ref_logp
    if not case.given:
        with torch.no_grad():
            ref_logp = log_probs(linear(batch.ref_hidden, batch.ref_weight), batch, case.softcap)
    return loss_on_log_probs(case, logp, ref_logp, batch)


def halos(case: Case, batch: Batch | HeadBatch) -> Tensor:
    if isinstance(batch, HeadBatch):
        assert isinstance(case, HeadCase)
        return on_hidden_states(case, batch)
    return on_logits(case, batch.logits, batch)


@functools.lru_cache(maxsize=1)
def _compiled(case_name: str, shape: torch.Size):
    torch.compiler.reset()  # or what was compiled before counts as recompilation, which ends in eager
    return torch.compile(on_logits, dynamic=False)


def compiled_halos(case: Case, batch: Batch) -> Tensor:
    return _compiled(case.name, batch.logits.shape)(case, batch.logits, batch)
