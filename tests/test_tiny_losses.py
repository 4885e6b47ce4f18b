"""Tiny policies: AdamW, gradient clipping and the losses of many policies at once."""

import pytest
import torch
from torch import Tensor

from humanline_fused import HumanlineClamp, TokenLogp, dpo_loss, grpo_loss, kto_loss
from humanline_fused.tiny import Policies, Sorting
from humanline_fused.tiny.adamw import AdamW, clipped_gradients
from humanline_fused.tiny.losses import DESIRABLE_WEIGHT, LOSSES, MARGIN, Samples, Scored, pairs, unequal

TASK = Sorting(digits=3, alphabet=4)
POLICIES = Policies(TASK, hidden=16)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# Optimizer


def test_adamw_is_that_of_pytorch_for_every_policy():
    rates = 1e-3, 1e-2
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    ours = {"weight": start.clone()}
    optimizer = AdamW(ours, torch.tensor(rates, dtype=torch.float64))
    theirs = [torch.nn.Parameter(value.clone()) for value in start]
    others = [torch.optim.AdamW([p], lr=rate, weight_decay=0.01) for p, rate in zip(theirs, rates, strict=True)]
    for _ in range(5):
        gradient = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
        optimizer.step({"weight": gradient})
        for parameter, one, other in zip(theirs, gradient, others, strict=True):
            parameter.grad = one
            other.step()
    torch.testing.assert_close(ours["weight"], torch.stack([p.detach() for p in theirs]))


@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_gradients_are_clipped_as_pytorch_clips_them(max_norm):
    parameters = {name: value.double().requires_grad_() for name, value in POLICIES.initial([0, 1]).items()}
    losses = sum(((k + 1) * value).sin().sum((1, 2)) for k, value in enumerate(parameters.values()))
    assert isinstance(losses, Tensor)
    ours, norm = clipped_gradients(losses, parameters, max_norm)
    for policy in range(2):
        leaves = [value[policy].detach().clone().requires_grad_() for value in parameters.values()]
        sum(((k + 1) * leaf).sin().sum() for k, leaf in enumerate(leaves)).backward()  # type: ignore[union-attr]
        theirs = torch.nn.utils.clip_grad_norm_(leaves, max_norm)
        torch.testing.assert_close(norm[policy], theirs)
        for leaf, gradient in zip(leaves, ours.values(), strict=True):
            torch.testing.assert_close(gradient[policy], leaf.grad)


# Losses


def scored(select, clamp: float) -> tuple[Scored, Samples]:
    """Return random scores of one policy, with bounds that some log-ratios exceed, and the samples before selection."""
    prompts = TASK.prompts(generators(0), 6).repeat_interleave(4, 1)
    answers = TASK.prompts(generators(1), 24)
    rewards = torch.tensor([[1, 0, 1, 0] * 5 + [1, 1, 1, 1]], dtype=torch.float64)
    samples = Samples(TASK.encode(prompts), answers, TASK.loss_mask(answers), rewards, 4)
    seen = select(samples)
    made = torch.Generator().manual_seed(2)
    logp, ref = (-torch.rand(seen.answers.shape, generator=made, dtype=torch.float64) * 2 for _ in range(2))
    numbers = {"beta": 0.7, "epsilon": 0.2, "log_epsilon_P": -clamp, "log_epsilon_R": clamp}
    vectors = {name: torch.tensor([value], dtype=torch.float64) for name, value in numbers.items()}
    kl = torch.tensor([0.3], dtype=torch.float64)
    return Scored(seen, logp.requires_grad_(), ref, kl, **vectors), samples


@pytest.mark.parametrize("name", ["dpo", "kto", "grpo"])
def test_the_losses_are_the_packages_own(name):
    select, loss = LOSSES[name]
    given, samples = scored(select, 0.8)
    ours, clamped = loss(given)
    logp = given.logp[0].detach().clone().requires_grad_()
    scores = TokenLogp(logp), TokenLogp(given.ref_logp[0]), given.samples.answers[0], given.samples.loss_mask[0]
    clamp = HumanlineClamp(log_epsilon_P=-0.8, log_epsilon_R=0.8)
    groups = samples.by_group[0]
    if name == "dpo":
        theirs = dpo_loss(*scores, beta=0.7, clamp=clamp)
    elif name == "kto":
        desirable = (groups > groups.mean(-1, keepdim=True)).flatten()
        theirs = kto_loss(*scores, desirable, kl=0.3, beta=0.7, desirable_weight=DESIRABLE_WEIGHT, clamp=clamp)
    else:
        advantages = (groups - groups.mean(-1, keepdim=True)) / (groups.std(-1, correction=0, keepdim=True) + MARGIN)
        theirs = grpo_loss(*scores, advantages.flatten(), epsilon=0.2, clamp=clamp)
    torch.testing.assert_close(ours[0], theirs.loss)
    ours.sum().backward()
    theirs.loss.backward()
    torch.testing.assert_close(given.logp.grad[0], logp.grad)  # type: ignore[index]
    counted = given.samples.loss_mask
    outside = ((given.logp - given.ref_logp).abs() > 0.8) & counted
    assert clamped.item() == pytest.approx((outside.sum() / counted.sum()).item())


def test_a_pair_is_the_best_and_the_worst_answer_of_a_prompt():
    rewards = torch.tensor([[0.0, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0]])
    answers = torch.arange(8)[None, :, None].expand(1, 8, 3)
    chosen = pairs(Samples(torch.zeros(1, 8, 2), answers, torch.ones(1, 8, 3, dtype=torch.bool), rewards, 4))
    assert chosen.answers[0, :, 0].tolist() == [2, 4, 0, 4]
    assert chosen.loss_mask.all(-1).tolist() == [[True, False, True, False]], "no token of equal answers counts"


def test_no_answer_to_a_prompt_of_equal_rewards_counts_in_kto():
    rewards = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
    samples = Samples(torch.zeros(1, 4, 2), torch.zeros(1, 4, 3), torch.ones(1, 4, 3, dtype=torch.bool), rewards, 2)
    assert unequal(samples).loss_mask.all(-1).tolist() == [[True, True, False, False]]


def test_a_mismatched_answer_is_one_to_the_next_prompt():
    answers = torch.arange(4)[None, :, None]
    mask = torch.ones_like(answers, dtype=torch.bool)
    samples = Samples(torch.arange(4.0)[None, :, None], answers, mask, torch.zeros(1, 4), 2)
    assert samples.mismatched().answers.flatten().tolist() == [2, 3, 0, 1]
