"""The package's eager losses of many policies at once: one loss for each policy, on a step's samples."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from humanline_fused.eager import dpo_loss, grpo_loss, kto_loss
from humanline_fused.perception.sampling import detached_where, rejected
from humanline_fused.types import HumanlineSampling

MARGIN = 1e-2
"""Added to the standard deviation of a group's rewards (ContextualAI/HALOs at aa02f66)."""

DESIRABLE_WEIGHT = 1.1
"""λ_D of the authors' scripts."""


@dataclass(frozen=True)
class Samples:
    """Samples of a step: N = P · G of them, those of a prompt side by side.

    Attributes:
        prompts: features of the prompts, [M, N, F].
        answers: [M, N, T].
        loss_mask: [M, N, T].
        rewards: [M, N].
        group_size: G.
    """

    prompts: Tensor
    answers: Tensor
    loss_mask: Tensor
    rewards: Tensor
    group_size: int

    @property
    def by_group(self) -> Tensor:
        """The rewards, [M, P, G]."""
        return self.rewards.unflatten(1, (-1, self.group_size))

    def taken(self, index: Tensor) -> "Samples":
        """Return the samples of an index [M, n], with n a multiple of the group size or for ungrouped use."""
        take = lambda values: values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))  # noqa: E731
        rewards = self.rewards.gather(1, index)
        return Samples(take(self.prompts), take(self.answers), take(self.loss_mask), rewards, self.group_size)

    def mismatched(self) -> "Samples":
        """Return every prompt with an answer to the next prompt."""
        answers, mask = self.answers.roll(-self.group_size, 1), self.loss_mask.roll(-self.group_size, 1)
        return Samples(self.prompts, answers, mask, self.rewards, self.group_size)


@dataclass(frozen=True)
class Scored:
    """Samples with their log-probs, and the settings of the policies.

    Attributes:
        samples: the samples that the loss sees.
        logp: [M, N, T], with a graph.
        ref_logp: [M, N, T].
        kl: KTO's z0, [M]; else None.
        beta, epsilon, log_epsilon_P, log_epsilon_R: [M].
    """

    samples: Samples
    logp: Tensor
    ref_logp: Tensor
    kl: Tensor | None
    beta: Tensor
    epsilon: Tensor
    log_epsilon_P: Tensor
    log_epsilon_R: Tensor


def kept_gradient(logp: Tensor, ref_logp: Tensor, loss_mask: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probs without a gradient at the tokens that humanline sampling rejects, and their share, [M].

    Args:
        logp, ref_logp, loss_mask: [M, N, T].
        draws: log B_P and log B_R, [M, 2, N, T].
    """

    def one(logp: Tensor, ref_logp: Tensor, mask: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        out = rejected(logp - ref_logp, mask, HumanlineSampling(draws=draws, group="local"))
        stopped = out.low | out.high
        return detached_where(stopped, logp), stopped.sum() / mask.sum().clamp(min=1)

    return torch.func.vmap(one)(logp, ref_logp, loss_mask, draws)


def pairs(samples: Samples) -> Samples:
    """Return the best and the worst sample of each prompt, chosen ones first; no token of equal ones counts."""
    rewards = samples.by_group
    number, size = rewards.shape[1:]
    first = size * torch.arange(number)
    index = torch.cat([first + rewards.argmax(-1), first + rewards.argmin(-1)], 1)
    differs = (rewards.amax(-1) > rewards.amin(-1)).repeat(1, 2)
    chosen = samples.taken(index)
    mask = chosen.loss_mask & differs[..., None]
    return Samples(chosen.prompts, chosen.answers, mask, chosen.rewards, 1)


def unequal(samples: Samples) -> Samples:
    """Return the samples; no token of a prompt whose rewards are equal counts."""
    rewards = samples.by_group
    differs = (rewards.amax(-1) > rewards.amin(-1)).repeat_interleave(samples.group_size, 1)
    return Samples(
        samples.prompts, samples.answers, samples.loss_mask & differs[..., None], samples.rewards, samples.group_size
    )


def everything(samples: Samples) -> Samples:
    """Return the samples as they are."""
    return samples


def dpo(scored: Scored) -> tuple[Tensor, Tensor]:
    """Return the loss of each policy, [M], and the share of its tokens that is clamped."""

    def one(logp: Tensor, ref: Tensor, mask: Tensor, low: Tensor, high: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        bounds = {"log_epsilon_P": low, "log_epsilon_R": high}
        out = dpo_loss(logp, ref, mask, None, beta=beta, label_smoothing=0.0, **bounds)  # type: ignore[arg-type]
        return out.loss, out.clamped_low_fraction + out.clamped_high_fraction

    s = scored
    return _over_policies(one, s.logp, s.ref_logp, s.samples.loss_mask, s.log_epsilon_P, s.log_epsilon_R, s.beta)


def kto(scored: Scored) -> tuple[Tensor, Tensor]:
    """As :func:`dpo`. Samples above their prompt's mean reward are desirable."""

    def one(
        logp: Tensor, ref: Tensor, mask: Tensor, desirable: Tensor, kl: Tensor, low: Tensor, high: Tensor, beta: Tensor
    ) -> tuple[Tensor, ...]:
        weights = {"desirable_weight": DESIRABLE_WEIGHT, "undesirable_weight": 1.0}
        bounds = {"log_epsilon_P": low, "log_epsilon_R": high}
        out = kto_loss(logp, ref, mask, None, desirable, kl, beta=beta, **weights, **bounds)  # type: ignore[arg-type]
        return out.loss, out.clamped_low_fraction + out.clamped_high_fraction

    s, rewards = scored, scored.samples.by_group
    desirable = (rewards > rewards.mean(-1, keepdim=True)).flatten(1)
    assert s.kl is not None
    scores = s.logp, s.ref_logp, s.samples.loss_mask, desirable, s.kl
    return _over_policies(one, *scores, s.log_epsilon_P, s.log_epsilon_R, s.beta)


def grpo(scored: Scored) -> tuple[Tensor, Tensor]:
    """As :func:`dpo`, without a KL penalty."""

    def one(
        logp: Tensor, ref: Tensor, mask: Tensor, advantages: Tensor, low: Tensor, high: Tensor, epsilon: Tensor
    ) -> tuple[Tensor, ...]:
        bounds = {"epsilon": epsilon, "epsilon_high": epsilon, "log_epsilon_P": low, "log_epsilon_R": high}
        out = grpo_loss(logp, ref, mask, advantages, None, beta=0.0, **bounds)  # type: ignore[arg-type]
        return out.loss, out.clamped_low_fraction + out.clamped_high_fraction

    s, rewards = scored, scored.samples.by_group
    deviation = rewards.std(-1, correction=0, keepdim=True) + MARGIN
    advantages = ((rewards - rewards.mean(-1, keepdim=True)) / deviation).flatten(1)
    scores = s.logp, s.ref_logp, s.samples.loss_mask, advantages[..., None].expand_as(s.logp)
    return _over_policies(one, *scores, s.log_epsilon_P, s.log_epsilon_R, s.epsilon)


def _over_policies(loss: Callable[..., tuple[Tensor, ...]], *arguments: Tensor) -> tuple[Tensor, Tensor]:
    losses, clamped = torch.func.vmap(loss)(*arguments)
    return losses, clamped


LOSSES = {"dpo": (pairs, dpo), "kto": (unequal, kto), "grpo": (everything, grpo)}
"""By name: which samples the loss sees, and the loss."""
