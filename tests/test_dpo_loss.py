"""dpo_loss by hand (docs/math.md, equations 4 to 5c). Properties of all losses: test_losses.py."""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from humanline_fused import HumanlineClamp, TokenLogp, dpo_loss
from humanline_fused.eager.dpo_loss import LINKS as eager_links
from humanline_fused.types import DPOLossType
from humanline_kernels.dpo_loss import LINKS as kernel_links
from tests.error_budget import DIV, assert_within_budget
from tests.inputs import random_batch, token_batch
from tests.oracle import assert_matches_oracle

LOSS_TYPES = get_args(DPOLossType)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Chosen: log-ratios 0.5 and 2 (clamped to 1.5); rejected: −0.25 and −3 (clamped to −1.5).
LOGP = [[-1.0, -1.0], [-1.25, -4.0]]
REF_LOGP = [[-1.5, -3.0], [-1.0, -1.0]]


def test_the_value_is_minus_log_sigmoid_of_the_clamped_margin(impl, device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, device=device)
    out = dpo_loss(TokenLogp(policy), reference, ids, mask, beta=0.5, impl=impl)
    assert out.rewards.tolist() == [1.0, -0.875]
    assert out.loss.item() == pytest.approx(-math.log(sigmoid(1.875)), rel=1e-6)


def test_the_gradient_is_beta_times_the_doubt_where_the_clamp_lets_it_through(impl, device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, device=device)
    dpo_loss(TokenLogp(policy), reference, ids, mask, beta=0.5, impl=impl).loss.backward()
    slope = 0.5 * sigmoid(-1.875)
    assert policy.grad.flatten().tolist() == pytest.approx([-slope, 0.0, slope, 0.0], rel=1e-6)


def test_clamping_each_token_differs_from_clamping_the_sum__oracle_d(impl, device):
    # Log-ratios +3 and −1 sum to 2, which a clamp of the sum would leave at 1.5; per token they sum to 0.5.
    policy, reference, ids, mask = token_batch([[2.0, -2.0], [0.0, 0.0]], [[-1.0, -1.0], [0.0, 0.0]], device=device)
    out = dpo_loss(TokenLogp(policy), reference, ids, mask, beta=1.0, impl=impl)
    assert out.rewards.tolist() == [0.5, 0.0]


def test_label_smoothing_mixes_in_the_loss_of_the_opposite_preference(impl, device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, device=device)
    out = dpo_loss(TokenLogp(policy), reference, ids, mask, beta=0.5, label_smoothing=0.2, impl=impl)
    expected = -0.8 * math.log(sigmoid(1.875)) - 0.2 * math.log(sigmoid(-1.875))
    assert out.loss.item() == pytest.approx(expected, rel=1e-6)
    out.loss.backward()
    slope = 0.5 * (0.8 * sigmoid(-1.875) - 0.2 * sigmoid(1.875))
    assert policy.grad.flatten().tolist() == pytest.approx([-slope, 0.0, slope, 0.0], rel=1e-6)


def test_the_loss_is_the_mean_over_pairs_first_half_chosen(impl, device):
    one = [[-1.0], [-2.0]]
    two = [[-1.0], [-1.5], [-2.0], [-1.0]]
    reference = [[-1.5], [-1.5], [-1.5], [-1.5]]
    losses = []
    for logp, ref in ((one, reference[:2]), ([[-1.5], [-1.0]], reference[:2]), (two, reference)):
        policy, ref_logp, ids, mask = token_batch(logp, ref, device=device)
        losses.append(dpo_loss(TokenLogp(policy), ref_logp, ids, mask, impl=impl).loss.item())
    assert losses[2] == pytest.approx((losses[0] + losses[1]) / 2, rel=1e-6)


@pytest.mark.parametrize(("mask", "margin"), [([[1], [0]], 1.0), ([[0], [1]], 0.5)])
def test_a_pair_of_which_one_side_is_empty_still_counts(impl, device, mask, margin):
    policy, reference, ids, mask = token_batch([[-1.0], [-1.5]], [[-2.0], [-1.0]], mask, device=device)
    out = dpo_loss(TokenLogp(policy), reference, ids, mask, beta=1.0, impl=impl)
    assert out.loss.item() == pytest.approx(-math.log(sigmoid(margin)), rel=1e-6)


def test_a_rejected_answer_that_the_policy_excludes_is_a_decided_pair(impl, device):
    policy, reference, ids, mask = token_batch([[-1.0], [-math.inf]], [[-1.0], [-1.0]], device=device)
    out = dpo_loss(TokenLogp(policy), reference, ids, mask, clamp=None, impl=impl)
    assert out.loss.item() == 0


@pytest.mark.parametrize("margin", [-60.0, 12.0, 16.0, 60.0])
def test_a_decided_pair_neither_overflows_nor_loses_its_digits(impl, device, margin):
    policy, reference, ids, mask = token_batch([[margin], [0.0]], [[0.0], [0.0]], device=device)
    out = dpo_loss(TokenLogp(policy), reference, ids, mask, beta=1.0, clamp=None, impl=impl)
    # exp of 60 amplifies the rounding of 60 · log₂e, half a float32 ulp at 64, to 3e-6.
    assert out.loss.item() == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-5, abs=0)
    out.loss.backward()
    assert policy.grad[0].item() == pytest.approx(-sigmoid(-margin), rel=1e-5, abs=0)


def test_an_odd_number_of_sequences_is_refused():
    policy, reference, ids, mask = token_batch([[-1.0]] * 3, [[-1.0]] * 3)
    with pytest.raises(ValueError, match=r"expected an even number of sequences.*got 3"):
        dpo_loss(TokenLogp(policy), reference, ids, mask)


def test_beta_and_label_smoothing_out_of_range_are_refused():
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP)
    wrongs: list[dict[str, Any]] = [
        {"beta": -0.1},
        {"beta": math.nan},
        {"label_smoothing": 0.6},
        {"label_smoothing": -0.1},
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected a finite number in"):
            dpo_loss(TokenLogp(policy), reference, ids, mask, **wrong)


def test_it_agrees_with_torch_s_own_pieces_on_unclamped_sequences(impl, device):
    generator = torch.Generator().manual_seed(0)
    logp, ref_logp = (-torch.rand(6, 7, generator=generator) for _ in range(2))
    policy, reference, ids, mask = token_batch(logp.tolist(), ref_logp.tolist(), device=device)
    out = dpo_loss(TokenLogp(policy), reference, ids, mask, clamp=None, impl=impl)
    margin = (logp - ref_logp).double().sum(-1)
    expected = torch.nn.functional.softplus(-0.1 * (margin[:3] - margin[3:])).mean()
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-6)


# Other losses of pairs


def loss_by_hand(impl, device, loss_type, mask=None, **settings):
    """Return the loss of the pair above, and its gradient in the four log-probs."""
    policy, reference, ids, loss_mask = token_batch(LOGP, REF_LOGP, mask, device=device)
    out = dpo_loss(TokenLogp(policy), reference, ids, loss_mask, loss_type=loss_type, impl=impl, **settings)
    (gradient,) = torch.autograd.grad(out.loss, policy)
    return out.loss.item(), gradient.flatten().tolist()


def test_sigmoid_norm_is_dpo_of_the_margin_per_token(impl, device):
    loss, gradient = loss_by_hand(impl, device, "sigmoid_norm", beta=0.5)
    margin = 0.5 * (2 / 2 + 1.75 / 2)
    assert loss == pytest.approx(-math.log(sigmoid(margin)), rel=1e-6)
    slope = 0.5 * sigmoid(-margin) / 2
    assert gradient == pytest.approx([-slope, 0.0, slope, 0.0], rel=1e-6)


def test_ipo_is_the_squared_distance_of_the_margin_per_token_from_its_target(impl, device):
    loss, gradient = loss_by_hand(impl, device, "ipo", beta=0.5)
    difference = 2 / 2 + 1.75 / 2
    # The margin's quotients err by DIV of 0.94, of which 0.44 are left after the target; the next, by beta, is squared.
    assert loss == pytest.approx((difference - 1) ** 2, rel=2 * (0.94 / 0.44 + 1) * DIV)
    slope = 2 * (difference - 1) / 2  # a further quotient by beta, and one by the tokens
    assert gradient == pytest.approx([slope, 0.0, -slope, 0.0], rel=(0.94 / 0.44 + 2) * DIV, abs=0)


def test_ipo_pulls_the_margin_up_below_its_target_and_down_above_it(impl, device):
    _, above = loss_by_hand(impl, device, "ipo", beta=0.5)
    _, below = loss_by_hand(impl, device, "ipo", beta=0.1)
    assert above[0] > 0 > below[0]


def test_hinge_is_1_minus_the_margin_where_that_is_positive(impl, device):
    loss, gradient = loss_by_hand(impl, device, "hinge", beta=0.2)
    assert loss == pytest.approx(1 - 0.2 * 3.75, rel=1e-6)
    assert gradient == pytest.approx([-0.2, 0.0, 0.2, 0.0], rel=1e-6)
    assert loss_by_hand(impl, device, "hinge", beta=0.5) == (0.0, [0.0] * 4)


def test_hinge_has_slope_0_at_its_kink_and_1_an_ulp_below(impl, device):
    for margin, slope in ((1.0, 0.0), (math.nextafter(1.0, 0.0), 0.0), (1 - 2**-24, 1.0)):
        policy, reference, ids, mask = token_batch([[margin], [0.0]], [[0.0], [0.0]], device=device)
        out = dpo_loss(TokenLogp(policy), reference, ids, mask, beta=1.0, loss_type="hinge", impl=impl)
        (gradient,) = torch.autograd.grad(out.loss, policy)
        assert gradient.flatten().tolist() == [-slope, slope]


def test_a_log_prob_of_nan_makes_every_loss_of_its_pair_nan(impl, device):
    for loss_type in LOSS_TYPES:
        policy, reference, ids, mask = token_batch([[math.nan], [0.0]], [[0.0], [0.0]], device=device)
        assert dpo_loss(TokenLogp(policy), reference, ids, mask, loss_type=loss_type, impl=impl).loss.isnan()


@pytest.mark.parametrize(("loss_type", "expected"), [("ipo", (2 / 2 + 0.25 - 1) ** 2), ("sigmoid_norm", None)])
def test_a_margin_per_token_is_over_the_tokens_that_count(impl, device, loss_type, expected):
    loss, gradient = loss_by_hand(impl, device, loss_type, mask=[[1, 1], [1, 0]], beta=0.5)
    assert loss == pytest.approx(-math.log(sigmoid(0.625)) if expected is None else expected, rel=1e-6)
    # The chosen sequence's slope is halved by its two tokens, the rejected one's is whole.
    assert gradient[2] == pytest.approx(-2 * gradient[0], rel=1e-6)
    assert gradient[0] != 0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_pair_with_an_empty_side_has_the_other_side_s_margin(impl, device, loss_type):
    loss, gradient = loss_by_hand(impl, device, loss_type, mask=[[1, 0], [0, 0]], beta=0.5)
    margin = 0.25
    by_hand = {"ipo": (0.5 - 1) ** 2, "hinge": 1 - margin}
    assert loss == pytest.approx(by_hand.get(loss_type, -math.log(sigmoid(margin))), rel=1e-6)
    assert gradient[0] < 0
    assert gradient[1:] == [0.0] * 3


def test_rewards_are_beta_times_the_sum_for_every_loss_type(impl, device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, device=device)
    for loss_type in LOSS_TYPES:
        out = dpo_loss(TokenLogp(policy), reference, ids, mask, beta=0.5, loss_type=loss_type, impl=impl)
        assert out.rewards.tolist() == [1.0, -0.875]


# Other losses of pairs: TRL


def trl_s_loss(loss_type: str, beta: float, logp: torch.Tensor, ref_logp: torch.Tensor, mask: torch.Tensor) -> Any:
    """Return the loss of TRL's trainer on token log-probs, and its logged rewards: trl 1.16, dpo_trainer.py."""
    from trl.trainer.dpo_trainer import DPOTrainer

    zeros = torch.zeros_like(logp)
    outputs = SimpleNamespace(log_probs=logp * mask, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    accelerator = SimpleNamespace(device=logp.device, gather=lambda t: t, gather_for_metrics=lambda t: t)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    ref_chosen, ref_rejected = (ref_logp * mask).sum(-1).chunk(2)
    prompt = torch.zeros_like(mask[:, :1])
    inputs = {
        "input_ids": torch.zeros(len(mask), mask.shape[1] + 1, dtype=torch.long),
        "attention_mask": torch.ones(len(mask), mask.shape[1] + 1, dtype=torch.long),
        "completion_mask": torch.cat([prompt, mask], 1).long(),
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)  # pyright: ignore[reportArgumentType]
    return loss, trainer._metrics["train"]


@pytest.mark.parametrize("beta", [0.05, 0.7])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_without_a_clamp_value_and_gradient_are_those_of_trl_s_trainer(impl, device, loss_type, beta):
    generator = torch.Generator().manual_seed(0)
    logp, ref_logp = (-3 * torch.rand(8, 7, generator=generator) for _ in range(2))
    mask = torch.rand(8, 7, generator=generator) < 0.7
    mask[1], mask[5] = False, False
    mask[5, 2] = True  # a pair with an empty side; TRL has no answer for a pair without any token
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = logp.to(dtype, copy=True).requires_grad_()
        loss, metrics = trl_s_loss(loss_type, beta, leaf, ref_logp.to(dtype), mask)
        rewards = [torch.tensor(metrics[f"rewards/{side}"][0], dtype=dtype) for side in ("chosen", "rejected")]
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf), *rewards))
    leaf = logp.to(device, copy=True).requires_grad_()
    ids = torch.zeros(mask.shape, dtype=torch.long, device=device)
    settings = {"beta": beta, "loss_type": loss_type, "clamp": None, "impl": impl}
    out = dpo_loss(TokenLogp(leaf), TokenLogp(ref_logp.to(device)), ids, mask.to(device), **settings)
    rewards = [side.mean() for side in out.rewards.chunk(2)]
    actual = out.loss.detach(), *torch.autograd.grad(out.loss, leaf), *rewards
    log_probs = ((logp.abs() + ref_logp.abs()) * mask).sum(-1).max().item()
    # The slope is a difference of things the size of beta; of 1 / beta in IPO, whose target that is.
    unit = 1 / beta if loss_type == "ipo" else beta
    for name, value, single, double in zip(("loss", "dlogp", "chosen", "rejected"), actual, *results, strict=True):
        assert_within_budget(value, single, double, name, log_probs=2 * log_probs, unit=unit / len(mask))


# Other losses of pairs: the oracle


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clamp", [None, HumanlineClamp(), HumanlineClamp(-0.2, 0.4)])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_of_pairs_is_as_close_to_the_oracle_as_eager_is(device, loss_type, clamp, dtype):
    batch = random_batch(device, B=6, dtype=dtype)
    assert_matches_oracle("dpo", batch, clamp=clamp, loss_type=loss_type, label_smoothing=0.0)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_eager_s_gradient_of_every_loss_of_pairs_is_its_derivative(loss_type):
    generator = torch.Generator().manual_seed(0)
    logp, ref_logp = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    ids, mask = torch.zeros(6, 3, dtype=torch.long), torch.rand(6, 3, generator=generator) < 0.7

    def loss(logp):
        return dpo_loss(TokenLogp(logp), TokenLogp(ref_logp), ids, mask, beta=0.4, loss_type=loss_type).loss

    assert torch.autograd.gradcheck(loss, logp.requires_grad_())
    assert torch.autograd.gradgradcheck(loss, logp)


def test_eager_and_kernel_have_the_same_links():
    assert set(eager_links) == set(kernel_links) == set(get_args(DPOLossType))
    assert all(eager_links[name].per_token == kernel_links[name]["PER_TOKEN"] for name in eager_links)


# Other losses of pairs: errors


def test_an_unknown_loss_type_is_refused_with_all_names_and_the_nearest():
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP)
    message = r"loss_type: expected one of 'sigmoid', 'ipo', 'hinge', 'sigmoid_norm', got 'hing'; did you mean hinge\?"
    wrong: Any = "hing"
    with pytest.raises(ValueError, match=message):
        dpo_loss(TokenLogp(policy), reference, ids, mask, loss_type=wrong)


@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "sigmoid_norm"])
def test_label_smoothing_is_refused_where_trl_would_ignore_it(loss_type):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP)
    with pytest.raises(ValueError, match=f"label_smoothing: expected 0 with loss_type='{loss_type}', got 0.1"):
        dpo_loss(TokenLogp(policy), reference, ids, mask, loss_type=loss_type, label_smoothing=0.1)


def test_a_beta_of_0_is_refused_for_ipo_whose_target_is_1_over_2_beta():
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP)
    with pytest.raises(ValueError, match="beta with loss_type='ipo': expected a finite number > 0, got 0"):
        dpo_loss(TokenLogp(policy), reference, ids, mask, loss_type="ipo", beta=0.0)
