"""grpo_loss by hand (docs/math.md, equations 9 to 11). Properties of all losses: test_losses.py."""

import math

import pytest
import torch

from humanline_fused import HumanlineClamp, TokenLogp, grpo_loss
from tests.inputs import token_batch


def grpo(impl, device, log_ratio, advantage, mask=None, **settings):
    policy, reference, ids, loss_mask = token_batch(log_ratio, [[0.0] * len(row) for row in log_ratio], mask, device)
    advantages = torch.tensor(advantage, device=device)
    out = grpo_loss(TokenLogp(policy), reference, ids, loss_mask, advantages, impl=impl, **settings)
    out.loss.backward()
    return out, policy.grad


# Value and gradient


def test_inside_all_bounds_the_value_is_minus_a_times_the_ratio(impl, device):
    out, gradient = grpo(impl, device, [[math.log(1.1)]], [2.0])
    assert out.loss.item() == pytest.approx(-2.2, rel=1e-6)
    assert gradient.item() == pytest.approx(-2.2, rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.5, 1.0, -1.2, 0.0),  # better than before already: clipped
        (0.5, 1.0, -0.5, -0.5),  # worse than before: the minimum keeps the pull
        (1.5, -1.0, 1.5, 1.5),
        (0.5, -1.0, 0.8, 0.0),
    ],
)
def test_ppo_s_clip_is_pessimistic(impl, device, ratio, advantage, value, slope):
    out, gradient = grpo(impl, device, [[math.log(ratio)]], [advantage])
    assert out.loss.item() == pytest.approx(value, rel=1e-6)
    assert gradient.item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(("ratio", "advantage"), [(6.0, -1.0), (0.1, 1.0)])
def test_humanline_s_clamp_is_two_sided_whatever_the_sign_of_the_advantage(impl, device, ratio, advantage):
    # PPO's clip lets both of these pull; humanline's clamp at ±1.5 stops them.
    out, gradient = grpo(impl, device, [[math.log(ratio)]], [advantage])
    bound = math.exp(1.5 if ratio > 1 else -1.5)
    assert out.loss.item() == pytest.approx(-advantage * bound, rel=1e-6)
    assert gradient.item() == 0


def test_k3_sees_the_unclamped_log_ratio__oracle_e(impl, device):
    out, _ = grpo(impl, device, [[-3.0]], [0.0], beta=0.1)
    k3 = math.exp(3) - 3 - 1
    assert out.kl.item() == pytest.approx(k3, rel=1e-6)
    assert out.loss.item() == pytest.approx(0.1 * k3, rel=1e-6)


def test_a_token_outside_the_bounds_still_receives_the_gradient_of_k3(impl, device):
    _, gradient = grpo(impl, device, [[-3.0]], [1.0], beta=0.1)
    assert gradient.item() == pytest.approx(0.1 * (1 - math.exp(3)), rel=1e-6)


def test_without_beta_a_log_ratio_whose_k3_overflows_does_no_harm(impl, device):
    out, gradient = grpo(impl, device, [[-200.0]], [1.0])
    assert out.loss.item() == pytest.approx(-math.exp(-1.5), rel=1e-6)
    assert gradient.item() == 0


# Bounds


def test_the_upper_and_lower_clip_are_separate(impl, device):
    out, _ = grpo(impl, device, [[math.log(1.25), math.log(1.5)]], [1.0], epsilon=0.1, epsilon_high=0.3)
    assert out.loss.item() == pytest.approx(-(1.25 + 1.3) / 2, rel=1e-6)


def test_the_clip_fractions_count_only_where_the_clip_stops_the_gradient(impl, device):
    log_ratio = [[math.log(1.5), math.log(0.5), 0.0, math.log(1.5)], [math.log(1.5), math.log(0.5), 0.0, 0.0]]
    out, gradient = grpo(impl, device, log_ratio, [1.0, -1.0], mask=[[1, 1, 1, 0], [1, 1, 1, 0]], clamp=None)
    assert out.clip_high_fraction.item() == pytest.approx(1 / 6)
    assert out.clip_low_fraction.item() == pytest.approx(1 / 6)
    assert out.clip_fraction.item() == pytest.approx(2 / 6)
    assert (gradient[:, :3] == 0).sum() == 2


def test_a_clamp_inside_the_clip_makes_the_clip_idle(impl, device):
    out, _ = grpo(impl, device, [[3.0, -3.0]], [1.0], clamp=HumanlineClamp(-0.1, 0.1))
    assert out.clip_fraction == 0
    assert out.unclamped_fraction == 0


# Mask and normalisation


def test_the_mean_is_over_tokens_not_over_sequences(impl, device):
    out, _ = grpo(impl, device, [[0.0, 0.0, 0.0], [0.0, 9.0, 9.0]], [1.0, 5.0], mask=[[1, 1, 1], [1, 0, 0]])
    assert out.loss.item() == pytest.approx(-(3 * 1.0 + 5.0) / 4, rel=1e-6)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_num_items_in_batch_replaces_this_batch_s_count(impl, device, as_tensor):
    items = torch.tensor(8, device=device) if as_tensor else 8
    out, gradient = grpo(impl, device, [[0.0, 0.0]], [1.0], num_items_in_batch=items)
    assert out.loss.item() == pytest.approx(-2 / 8, rel=1e-6)
    assert gradient.tolist() == [[-1 / 8, -1 / 8]]


def test_advantages_may_be_given_per_token(impl, device):
    out, gradient = grpo(impl, device, [[0.0, 0.0]], [[1.0, -3.0]])
    assert out.loss.item() == 1.0
    assert gradient.tolist() == [[-0.5, 1.5]]


def test_an_advantage_of_0_leaves_the_logits_alone(impl, device):
    _, gradient = grpo(impl, device, [[0.3, -0.4]], [0.0])
    assert (gradient == 0).all()


# Errors


def test_advantages_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"advantages: expected .* \[1\] on cpu, got float32 \[2\]"):
        grpo("eager", torch.device("cpu"), [[0.0]], [1.0, 2.0])


@pytest.mark.parametrize("wrong", [{"epsilon": -0.1}, {"epsilon": 1.5}, {"epsilon_high": -1.0}, {"beta": math.inf}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected a finite number in"):
        grpo("eager", torch.device("cpu"), [[0.0]], [1.0], **wrong)
