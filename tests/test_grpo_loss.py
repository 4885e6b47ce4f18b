"""grpo_loss by hand (docs/math.md, equations 9 to 11). Properties of all losses: test_losses.py."""

import math
from decimal import Decimal, localcontext

import pytest
import torch

from humanline_fused import HumanlineClamp, LMHead, Logits, TokenLogp, grpo_loss
from humanline_fused.eager.k3 import k3_of
from tests.error_budget import EX2, FLOAT32_EPSILON
from tests.inputs import token_batch

PRECISIONS = [torch.float32, torch.float64]


def grpo(impl, device, log_ratio, advantage, mask=None, **settings):
    policy, reference, ids, loss_mask = token_batch(log_ratio, [[0.0] * len(row) for row in log_ratio], mask, device)
    advantages = torch.as_tensor(advantage, device=device)
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


# Extremes: a ratio is infinite in float32 beyond 88 nats, the minimum of equation 9 is not


@pytest.mark.parametrize("clamp", [None, HumanlineClamp(-500, 500)])
@pytest.mark.parametrize("log_ratio", [89.0, 400.0, math.inf])
@pytest.mark.parametrize(("advantage", "value"), [(1.0, -1.2), (0.0, 0.0)])
def test_a_ratio_beyond_float32_is_clipped_like_any_other(impl, device, log_ratio, advantage, value, clamp):
    out, gradient = grpo(impl, device, [[log_ratio, 0.0]], [advantage], clamp=clamp)
    assert out.loss.item() == pytest.approx((value - advantage) / 2, rel=1e-6)
    assert gradient.tolist() == [[0.0, -advantage / 2]]


@pytest.mark.parametrize("log_ratio", [-89.0, -400.0, -math.inf])
@pytest.mark.parametrize(("advantage", "value"), [(1.0, 0.0), (0.0, 0.0), (-1.0, 0.8)])
def test_a_ratio_of_0_in_float32_has_the_value_of_0(impl, device, log_ratio, advantage, value):
    out, gradient = grpo(impl, device, [[log_ratio]], [advantage], clamp=None)
    assert out.loss.item() == pytest.approx(value, rel=1e-6, abs=torch.finfo(torch.float32).tiny)
    assert gradient.item() == pytest.approx(0, abs=torch.finfo(torch.float32).tiny)


def test_a_penalty_beyond_float32_is_infinite_and_pulls_back(impl, device):
    out, gradient = grpo(impl, device, [[400.0]], [-1.0], clamp=None)
    assert out.loss == math.inf
    assert gradient == math.inf


def test_a_bound_beyond_88_nats_stops_the_gradient_all_the_same(impl, device):
    out, gradient = grpo(impl, device, [[400.0]], [-1.0], clamp=HumanlineClamp(-100, 100))
    assert out.loss == math.inf
    assert gradient == 0


@pytest.mark.parametrize("log_ratio", [89.0, 400.0])
def test_the_penalty_beside_a_ratio_beyond_float32_keeps_its_slope(impl, device, log_ratio):
    out, gradient = grpo(impl, device, [[log_ratio]], [1.0], beta=0.1, clamp=None)
    assert out.kl.item() == pytest.approx(log_ratio - 1, rel=1e-6)
    assert out.loss.item() == pytest.approx(-1.2 + 0.1 * (log_ratio - 1), rel=1e-6)
    assert gradient.item() == pytest.approx(0.1, rel=1e-6)


def test_a_policy_that_excludes_a_token_of_the_reference_is_infinitely_far(impl, device):
    out, gradient = grpo(impl, device, [[-math.inf]], [1.0], beta=0.1)
    assert out.kl == out.loss == math.inf
    assert gradient == -math.inf


@pytest.mark.parametrize("form", ["two launches", "one launch", "frozen head", "trained head"])
@pytest.mark.parametrize("advantage", [1.0, 0.0])
def test_logits_a_ratio_apart_that_float32_cannot_hold_get_no_gradient(impl, device, form, advantage):
    logits = torch.tensor([[[0.0, 0.0, 0.0]]], device=device, requires_grad=True)
    weight = torch.eye(3, device=device, requires_grad=form == "trained head")
    policy = LMHead(logits, weight) if "head" in form else Logits(logits)
    reference = Logits(torch.tensor([[[-200.0, 0.0, 0.0]]], device=device))
    ids, mask = torch.zeros(1, 1, dtype=torch.long, device=device), torch.ones(1, 1, dtype=torch.bool, device=device)
    advantages = torch.tensor([advantage], device=device)
    settings = {"clamp": None, "impl": impl, "one_launch": form == "one launch"}
    out = grpo_loss(policy, reference, ids, mask, advantages, **settings)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(-1.2 * advantage, rel=1e-6)
    assert (logits.grad == 0).all()
    assert weight.grad is None or (weight.grad == 0).all()


# k3 near 0


def exact_k3(log_ratio: float) -> float:
    with localcontext() as context:
        context.prec = 60
        exact = Decimal(log_ratio)
        return float((-exact).exp() + exact - 1)


SMALL = [sign * size for size in (3.0, 1.0, 0.9999999, 0.5, 1e-1, 1e-2, 1e-4, 1e-5, 1e-7, 1e-12) for sign in (1, -1)]


@pytest.mark.parametrize("log_ratio", SMALL)
def test_k3_and_its_slope_keep_their_digits_however_small_the_log_ratio(impl, device, log_ratio):
    log_ratio = torch.tensor(log_ratio).item()  # as float32 holds it
    out, gradient = grpo(impl, device, [[log_ratio]], [0.0], beta=0.5, clamp=None)
    # From |ℓ| = 1 on the terms are subtracted: an exponential of e leaves e − 2. Its error is that of ex2.approx and of
    # its argument's rounding. Nearer to 0 the series rounds less.
    precision = math.e / (math.e - 2) * (EX2 + FLOAT32_EPSILON)
    assert out.kl.item() == pytest.approx(exact_k3(log_ratio), rel=precision, abs=0)
    assert out.loss.item() == pytest.approx(0.5 * exact_k3(log_ratio), rel=precision, abs=0)
    assert gradient.item() == pytest.approx(-0.5 * math.expm1(-log_ratio), rel=precision, abs=0)


@pytest.mark.parametrize("log_ratio", [1e-3, -1e-3, 0.7, -0.99, 1.0, -5.0])
def test_in_float64_k3_is_exact_to_float64_and_so_are_its_derivatives(log_ratio):
    leaf = torch.tensor(log_ratio, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(k3_of(leaf), leaf, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, leaf)
    precision = 8 * torch.finfo(torch.float64).eps
    assert k3_of(leaf).item() == pytest.approx(exact_k3(log_ratio), rel=precision, abs=0)
    assert slope.item() == pytest.approx(-math.expm1(-log_ratio), rel=precision, abs=0)
    assert curvature.item() == pytest.approx(math.exp(-log_ratio), rel=precision, abs=0)


# Bounds


def test_the_upper_and_lower_clip_are_separate(impl, device):
    out, _ = grpo(impl, device, [[math.log(1.25), math.log(1.5)]], [1.0], epsilon=0.1, epsilon_high=0.3)
    assert out.loss.item() == pytest.approx(-(1.25 + 1.3) / 2, rel=1e-6)
    out, _ = grpo(impl, device, [[math.log(1.25)]], [1.0], epsilon=0.1, epsilon_high=0.0)
    assert out.loss.item() == -1


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


def test_float64_advantages_take_the_precision_of_the_log_probs(impl, device):
    single, double = (grpo(impl, device, [[0.3]], torch.tensor([0.1], dtype=dtype)) for dtype in PRECISIONS)
    assert double[0].loss.dtype == torch.float32
    assert torch.equal(single[0].loss, double[0].loss)


def test_an_advantage_of_0_leaves_the_logits_alone(impl, device):
    _, gradient = grpo(impl, device, [[0.3, -0.4]], [0.0])
    assert (gradient == 0).all()


# Errors


def test_advantages_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"advantages: expected .* \[1\] on cpu, got float32 \[2\]"):
        grpo("eager", torch.device("cpu"), [[0.0]], [1.0, 2.0])


def test_a_divisor_that_is_no_single_number_is_refused():
    with pytest.raises(ValueError, match=r"num_items_in_batch: expected .* \[\] on cpu, got float32 \[1\]"):
        grpo("eager", torch.device("cpu"), [[0.0]], [1.0], num_items_in_batch=torch.tensor([8.0]))


@pytest.mark.parametrize("wrong", [{"epsilon": -0.1}, {"epsilon": 1.5}, {"epsilon_high": -1.0}, {"beta": math.inf}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected a finite number in"):
        grpo("eager", torch.device("cpu"), [[0.0]], [1.0], **wrong)
