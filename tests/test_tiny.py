"""Training of many tiny policies at once: references, samples, epochs, and settings that are refused."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from humanline_fused.tiny import Curves, Parameters, Policies, Setting, Sorting, Trainings, train
from humanline_fused.tiny.loop import _Loop
from humanline_fused.tiny.policies import rows

TASK = Sorting(digits=3, alphabet=4)
POLICIES = Policies(TASK, hidden=16)
SEEDS = (0, 1)
STANDARD_ERRORS = 5
"""A Monte-Carlo frequency is further away once in two million times."""
ROUNDING = 100 * torch.finfo(torch.float32).eps
"""Room for float32 sums of some tens of terms around 1, in another order."""


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
