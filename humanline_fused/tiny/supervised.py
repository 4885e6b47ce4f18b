"""Supervised start of the tiny policies: they can sort, but do not know which order is preferred."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from humanline_fused.tiny.adamw import AdamW, clipped_gradients
from humanline_fused.tiny.policies import Parameters, Policies, chosen_logp, overwritten

HELD_OUT = 256
"""Held-out prompts of each seed."""


@dataclass(frozen=True)
class Demonstrations:
    """What the initial policies learn from.

    Attributes:
        reversed: share of demonstrations in descending order.
        until: expected reward at which a policy stops learning.
        variant: another value gives policies of other parameters and demonstrations for the same seeds.
        learning_rate, batch_size, max_steps: of AdamW.
    """

    reversed: float = 0.6
    until: float = 0.385
    variant: int = 0
    learning_rate: float = 3e-3
    batch_size: int = 128
    max_steps: int = 3000


DEMONSTRATIONS = Demonstrations()


def fine_tune(policies: Policies, seeds: Sequence[int], demonstrations: Demonstrations = DEMONSTRATIONS) -> Parameters:
    """Return an initial policy for each seed, fine-tuned with cross-entropy until it reaches ``until``.

    Raises:
        ValueError: some policy does not reach it in ``max_steps``.
    """
    task, how = policies.task, demonstrations
    parameters = policies.initial([1_000_003 * how.variant + seed for seed in seeds])
    generators = [torch.Generator().manual_seed(77_000_000 + 7_919 * how.variant + seed) for seed in seeds]
    held_out = held_out_prompts(policies, seeds)
    optimizer = AdamW(parameters, torch.full((len(seeds),), how.learning_rate))
    done, kept = torch.zeros(len(seeds), dtype=torch.bool), parameters
    for step in range(how.max_steps):
        if step % 10 == 0:
            reached = policies.expected_reward(parameters, held_out) >= how.until
            kept = overwritten({n: p.clone() for n, p in parameters.items()}, done, kept)
            done |= reached
            if done.all():
                return kept
        prompts = task.prompts(generators, how.batch_size)
        answers = _demonstrations(policies, prompts, generators, how.reversed)
        for parameter in parameters.values():
            parameter.requires_grad_()
        logp = chosen_logp(policies.logits(parameters, task.encode(prompts), answers), answers)
        mask = task.loss_mask(answers)
        loss = -logp.where(mask, 0.0).sum((1, 2)) / mask.sum((1, 2))
        gradients, _ = clipped_gradients(loss, parameters, 1.0)
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        optimizer.step(gradients)
    rewards = policies.expected_reward(parameters, held_out)
    raise ValueError(
        f"until: expected a reward that {how.max_steps} steps reach, got {how.until}: seeds "
        f"{[seed for seed, reached in zip(seeds, done, strict=True) if not reached]} are at "
        f"{[round(float(reward), 3) for reward in rewards[~done]]}"
    )


def held_out_prompts(policies: Policies, seeds: Sequence[int]) -> Tensor:
    """Return the held-out prompts of each seed, [S, 256, digits]."""
    return policies.task.prompts([torch.Generator().manual_seed(900_000 + seed) for seed in seeds], HELD_OUT)


def _demonstrations(policies: Policies, prompts: Tensor, generators: Sequence[torch.Generator], share: float) -> Tensor:
    """Return an answer for each prompt, the given share of them in descending order; free tokens follow it if any."""
    task = policies.task
    answers, number = task.answers(prompts), prompts.shape[1]
    reverse = torch.stack([torch.rand(number, generator=generator) < share for generator in generators])
    digits = answers[..., : task.digits]
    answers[..., : task.digits] = torch.where(reverse[..., None], digits.flip(-1), digits)
    if task.filler:
        drawn = [torch.empty(number).geometric_(0.5, generator=generator) - 1 for generator in generators]
        lengths = torch.stack(drawn).clamp(max=task.filler)
        free = torch.arange(task.filler + 1) < lengths[..., None]
        answers[..., task.digits :].masked_fill_(free, task.alphabet)
    return answers
