"""Tiny policies: task, sampling, optimizer, losses, and the training of many policies at once."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from humanline_fused import HumanlineClamp, TokenLogp, dpo_loss, grpo_loss, kto_loss
from humanline_fused.tiny import (
    Curves,
    Demonstrations,
    Parameters,
    Policies,
    Setting,
    Sorting,
    Trainings,
    fine_tune,
    held_out_prompts,
    train,
)
from humanline_fused.tiny.adamw import AdamW, clipped_gradients
from humanline_fused.tiny.loop import _Loop
from humanline_fused.tiny.losses import DESIRABLE_WEIGHT, LOSSES, MARGIN, Samples, Scored, pairs, unequal
from humanline_fused.tiny.policies import chosen_logp, gumbel, rows

TASK = Sorting(digits=3, alphabet=4)
FILLER = Sorting(digits=2, alphabet=3, filler=2)
POLICIES = Policies(TASK, hidden=16)
SEEDS = (0, 1)
STANDARD_ERRORS = 5
"""A Monte-Carlo frequency is further away once in two million times."""
ROUNDING = 100 * torch.finfo(torch.float32).eps
"""Room for float32 sums of some tens of terms around 1, in another order."""


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def spread(policies: Policies, *seeds: int) -> Parameters:
    """Return random policies whose distributions are far from uniform."""
    made = policies.initial(seeds)
    return made | {"output": 8 * made["output"]}


def loop(loss: str, *settings: Setting, sources: tuple[Parameters, ...] = (), **shared: object) -> _Loop:
    trainings = Trainings(loss, POLICIES, **{"steps": 10, "prompts": 8, **shared})  # type: ignore[arg-type]
    return _Loop(trainings, settings, SEEDS, spread(POLICIES, *SEEDS), sources)


def trained(*settings: Setting, seeds: tuple[int, ...] = SEEDS, loss: str = "grpo", **shared: object) -> Curves:
    trainings = Trainings(loss, POLICIES, **{"steps": 5, "prompts": 8, "evaluate_every": 1, **shared})  # type: ignore
    return train(trainings, settings, seeds, spread(POLICIES, *seeds))


def same(a: Parameters, b: Parameters) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# Task


def test_a_right_answer_has_the_prompts_digits_in_ascending_order():
    prompt = torch.tensor([[[3, 1, 1]]])
    for answer, reward in (([1, 1, 3], 1.0), ([3, 1, 1], 0.0), ([1, 3, 1], 0.0), ([1, 2, 3], 0.0)):
        assert TASK.rewards(prompt, torch.tensor([[answer]])).item() == reward
    assert TASK.answers(prompt).tolist() == [[[1, 1, 3]]]


def test_free_tokens_after_the_digits_do_not_change_the_reward():
    free, end = FILLER.alphabet, FILLER.end
    prompt = torch.tensor([[[2, 0]]]).expand(1, 3, 2)
    answers = torch.tensor([[[0, 2, end, 0, 0], [0, 2, free, free, free], [0, 2, 1, end, 1]]])
    assert FILLER.rewards(prompt, answers).tolist() == [[1.0, 1.0, 1.0]]


def test_tokens_count_up_to_the_first_end():
    end = FILLER.end
    answers = torch.tensor([[[0, 1, end, end, 0], [0, 1, 2, 2, 2], [end, 0, 0, 0, 0]]])
    assert FILLER.loss_mask(answers).sum(-1).tolist() == [[3, 5, 1]]
    assert TASK.loss_mask(torch.zeros(1, 1, 3, dtype=torch.long)).all()


def test_a_right_answer_ends_at_once_if_answers_have_an_end():
    end = FILLER.end
    assert FILLER.answers(torch.tensor([[[2, 1]]])).tolist() == [[[1, 2, end, end, end]]]


# Policies


def test_a_policy_has_as_many_parameters_as_it_says():
    for policies in (POLICIES, Policies(FILLER, hidden=7)):
        assert policies.num_parameters == sum(value[0].numel() for value in policies.initial([0]).values())


def test_a_policys_parameters_depend_on_its_seed_alone():
    assert same(rows(POLICIES.initial([3, 4]), torch.tensor([1])), POLICIES.initial([4]))


def test_logits_do_not_see_their_own_and_later_tokens():
    parameters = spread(POLICIES, 0)
    features = TASK.encode(torch.tensor([[[3, 0, 2]]]))
    first = POLICIES.logits(parameters, features, torch.tensor([[[1, 2, 3]]]))[0, 0]
    for position in range(TASK.length):
        answers = torch.tensor([[[1, 2, 3]]])
        answers[..., position:] = 0
        changed = POLICIES.logits(parameters, features, answers)[0, 0]
        # The sum over earlier tokens is taken as (earlier + own) − own: only its rounding sees the own token.
        torch.testing.assert_close(first[: position + 1], changed[: position + 1], rtol=0, atol=ROUNDING)
        assert position == TASK.length - 1 or (first[position + 1] - changed[position + 1]).abs().max() > 0.01


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_have_the_policys_distribution_at_their_temperature(temperature):
    task = Sorting(digits=2, alphabet=2)
    policies, number = Policies(task, hidden=8), 20_000
    parameters = spread(policies, 0)
    prompts = torch.tensor([[1, 0]]).expand(1, number, 2)
    noise = gumbel(generators(0), (number, task.length, task.vocabulary))
    drawn = policies.sample(parameters, task.encode(prompts), noise, torch.tensor([temperature]))
    every = torch.cartesian_prod(torch.arange(2), torch.arange(2))[None]
    logits = policies.logits(parameters, task.encode(prompts[:, :4]), every)
    probability = chosen_logp(logits / temperature, every).sum(-1).exp()[0]
    frequency = (drawn[0, :, None] == every[0]).all(-1).double().mean(0)
    deviation = (probability * (1 - probability) / number).sqrt()
    assert ((frequency - probability).abs() <= STANDARD_ERRORS * deviation).all()


def test_the_expected_reward_is_the_frequency_of_right_samples():
    task = Sorting(digits=2, alphabet=2)
    policies, number = Policies(task, hidden=8), 20_000
    parameters = spread(policies, 1)
    prompts = task.prompts(generators(2), number)
    noise = gumbel(generators(3), (number, task.length, task.vocabulary))
    drawn = policies.sample(parameters, task.encode(prompts), noise, torch.ones(1))
    expected = policies.expected_reward(parameters, prompts).item()
    deviation = math.sqrt(expected * (1 - expected) / number)
    assert abs(task.rewards(prompts, drawn).mean().item() - expected) <= STANDARD_ERRORS * deviation


def test_an_initial_policy_learns_until_it_reaches_a_reward():
    how = Demonstrations(until=0.1)
    start = fine_tune(POLICIES, [5, 6], how)
    assert (POLICIES.expected_reward(start, held_out_prompts(POLICIES, [5, 6])) >= 0.1).all()
    again = fine_tune(POLICIES, [5, 6], how)
    assert same(start, again)


def test_a_reward_that_is_not_reached_is_an_error():
    with pytest.raises(ValueError, match=r"until: expected a reward that 5 steps reach, got 0\.9: seeds \[5\] are at"):
        fine_tune(POLICIES, [5], Demonstrations(until=0.9, max_steps=5))


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


# Training


MIXED = (
    Setting("plain", 3e-3),
    Setting("humanline", 3e-3, log_epsilon_P=-0.5, log_epsilon_R=0.5, sync_every=2),
    Setting("other temperature", 1e-3, temperature=2.0),
)


def test_the_same_call_gives_the_same_bits():
    first, second = (trained(*MIXED, replace(MIXED[0], name="online", resample_every=1)) for _ in range(2))
    assert torch.equal(first.reward, second.reward)
    assert same(first.parameters, second.parameters)


@pytest.mark.parametrize("loss", ["dpo", "kto", "grpo"])
def test_a_curve_does_not_depend_on_what_trains_beside_it(loss):
    together = trained(*MIXED, loss=loss)
    alone = trained(MIXED[1], seeds=(SEEDS[1],), loss=loss)
    # Products of another batch may round differently, in each of five steps; the rewards are probabilities.
    torch.testing.assert_close(together.reward[1, 1], alone.reward[0, 0], rtol=0, atol=ROUNDING)
    assert not torch.equal(together.reward[1, 1], together.reward[0, 1])


def test_the_parts_that_train_one_after_another_do_not_change_the_curves():
    whole = trained(*MIXED)
    parts = train(
        Trainings("grpo", POLICIES, 5, 8, evaluate_every=1), MIXED, SEEDS, spread(POLICIES, *SEEDS), at_once=2
    )
    torch.testing.assert_close(whole.reward, parts.reward, rtol=0, atol=ROUNDING)
    assert [setting.name for setting in parts.settings] == [setting.name for setting in MIXED]


def test_settings_of_a_seed_see_the_same_offline_samples():
    samples = loop("grpo", Setting("a"), Setting("b", 1e-2))._samples(0)
    assert torch.equal(samples.answers[: len(SEEDS)], samples.answers[len(SEEDS) :])
    assert not torch.equal(samples.answers[0], samples.answers[1])


def test_the_reference_is_synced_with_the_policy_before_the_update():
    one = loop("grpo", Setting("k = 2", sync_every=2))
    before = {name: value.clone() for name, value in one.policy.items()}
    one._step(0)
    one._step(1)
    assert same(one.reference, before), "the policy before step 0"
    before = {name: value.clone() for name, value in one.policy.items()}
    one._step(2)
    assert same(one.reference, before)
    assert not same(one.policy, before)


def test_a_reference_without_sync_stays_the_initial_policy():
    one = loop("dpo", Setting("plain"))
    for step in range(3):
        one._step(step)
    assert same(one.reference, one.start)
    assert not same(one.policy, one.start)


def test_online_samples_are_the_current_policys():
    one = loop("grpo", Setting("online", resample_every=1), Setting("every second step", resample_every=2))
    first = {name: value.clone() for name, value in one.policy.items()}
    one._step(0)
    second = {name: value.clone() for name, value in one.policy.items()}
    one._step(1)
    online, older = torch.arange(2), torch.arange(2, 4)
    assert same(rows(one.writer, online), rows(second, online))
    assert same(rows(one.writer, older), rows(first, older))


def test_a_reference_that_follows_the_data_is_the_policy_that_wrote_them():
    other = spread(POLICIES, 8, 9)
    one = loop("grpo", Setting("other", follows_data=True, source=1), sources=(other,))
    assert same(one.reference, other)
    one = loop("grpo", Setting("every second step", follows_data=True, resample_every=2))
    for step in range(4):
        one._step(step)
        assert same(one.reference, one.writer)
    assert not same(one.reference, one.start)


def test_a_source_writes_the_samples_of_its_settings_only():
    other = POLICIES.initial([8, 9])
    other["output_bias"][..., 2] = 100.0
    samples = loop("grpo", Setting("own"), Setting("other", source=1), sources=(other,))._samples(0)
    assert (samples.answers[2:] == 2).all()
    assert not (samples.answers[:2] == 2).all()


def test_a_later_epoch_repeats_the_samples_of_the_first():
    one = loop("dpo", Setting("plain"), steps=4, epochs=2)
    made = [one._samples(step) for step in range(4)]
    assert made[2] is made[0]
    assert made[3] is made[1]
    assert not torch.equal(made[0].answers, made[1].answers)


def test_noise_inverts_rewards_with_its_probability():
    exact, inverted, half = (
        loop("dpo", Setting("plain"), prompts=256, noise=noise)._samples(0).rewards for noise in (0.0, 1.0, 0.3)
    )
    assert torch.equal(inverted, 1 - exact)
    number = half.numel()
    flipped = (half != exact).double().mean().item()
    assert abs(flipped - 0.3) <= STANDARD_ERRORS * math.sqrt(0.3 * 0.7 / number)


def test_chosen_prompts_are_those_of_the_given_function():
    def last(policies: Policies, start: Parameters, prompts: Tensor, samples: Tensor) -> Tensor:
        assert samples.shape[:3] == (2, 8, 4)
        return torch.tensor([6, 7]).expand(len(samples), 2)

    chosen = loop("grpo", Setting("plain"), prompts=2, choose=last, drawn=8)._samples(0)
    every = loop("grpo", Setting("plain"), prompts=8)._samples(0)
    assert torch.equal(chosen.answers, every.answers[:, -8:])
    assert torch.equal(chosen.rewards, every.rewards[:, -8:])


def test_ratios_are_one_while_the_policy_is_the_reference():
    curves = trained(Setting("online", follows_data=True, resample_every=1), Setting("plain"))
    away = curves.mean_ratio.sub(1).abs()
    assert away[0].max() <= ROUNDING
    assert away[1, :, 0].max() <= ROUNDING
    assert away[1, :, -1].max() > ROUNDING, "policies that have left their reference"


def test_training_raises_the_reward_of_samples_that_are_right():
    curves = trained(Setting("online", 1e-2, resample_every=1, follows_data=True), steps=40)
    assert (curves.reward[..., -1] > curves.reward[..., 0]).all()


# Errors


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sync_every": 0}, "x: expected sync_every >= 1 or None, got 0"),
        ({"resample_every": 0}, "x: expected resample_every >= 1 or None, got 0"),
        ({"sync_every": 2, "follows_data": True}, "x: expected sync_every=None with follows_data, got 2"),
        ({"log_epsilon_P": 0.1}, "x: expected log_epsilon_P <= 0 <= log_epsilon_R, got 0.1 and inf"),
        ({"temperature": 0.0}, r"x: expected temperature > 0, got 0\.0"),
    ],
)
def test_a_setting_without_meaning_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Setting("x", **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "ppo"}, "loss: expected"),
        ({"steps": 3, "epochs": 4}, "epochs: expected 1 to 3, one step each at least, got 4"),
        ({"noise": 1.5}, r"noise: expected a probability, got 1\.5"),
        ({"drawn": 8}, "choose, drawn: expected both or neither"),
    ],
)
def test_trainings_without_meaning_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Trainings(**{"loss": "dpo", **values})


def test_what_does_not_fit_the_seeds_and_sources_is_refused():
    shared, start = Trainings("dpo", POLICIES), POLICIES.initial([0])
    with pytest.raises(ValueError, match="expected at least one setting and seed, got 0 and 1"):
        train(shared, [], [0], start)
    with pytest.raises(ValueError, match="expected a policy for each of 2 seeds, got 1"):
        train(shared, [Setting("x")], [0, 1], start)
    with pytest.raises(ValueError, match="x: expected a source from 0 to 0, got 1"):
        train(shared, [Setting("x", source=1)], [0], start)
    with pytest.raises(ValueError, match="x: expected resample_every=None with 2 epochs"):
        train(replace(shared, epochs=2), [Setting("x", resample_every=1)], [0], start)
