"""dpo_loss by hand (docs/math.md, equations 4 and 5). What holds for every loss is in test_losses.py."""

import math
from typing import Any

import pytest
import torch

from humanline_fused import TokenLogp, dpo_loss
from tests.inputs import token_batch


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
