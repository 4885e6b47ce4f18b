"""token_log_ratio and the clamp: the semantics of the paper's section 4 (docs/math.md, equations 2 and 3)."""

import math

import pytest
import torch

from humanline_fused import HumanlineClamp, Logits, TokenLogp, token_log_ratio, token_logp
from tests.inputs import random_batch, token_batch

# Log-ratios −2, −1.5, 0, 1.5, 2: below, on, inside, on, above the paper's bounds.
LOGP = [[-3.0, -2.5, -1.0, -1.0, -1.0]]
REF_LOGP = [[-1.0, -1.0, -1.0, -2.5, -3.0]]


# Value


def test_the_log_ratio_is_clamped_per_token(device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, device=device)
    out = token_log_ratio(TokenLogp(policy), reference, ids, mask)
    assert out.log_ratio.tolist() == [[-1.5, -1.5, 0.0, 1.5, 1.5]]


def test_without_a_clamp_it_is_the_plain_difference(device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, device=device)
    out = token_log_ratio(TokenLogp(policy), reference, ids, mask, clamp=None)
    assert out.log_ratio.tolist() == [[-2.0, -1.5, 0.0, 1.5, 2.0]]


def test_asymmetric_bounds_act_each_on_its_side(device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, device=device)
    out = token_log_ratio(TokenLogp(policy), reference, ids, mask, clamp=HumanlineClamp(-1.0, 1.75))
    assert out.log_ratio.tolist() == [[-1.0, -1.0, 0.0, 1.5, 1.75]]


# Gradient


def test_the_gradient_is_1_on_the_closed_interval_and_exactly_0_outside__oracle_c(device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, device=device)
    token_log_ratio(TokenLogp(policy), reference, ids, mask).log_ratio.sum().backward()
    assert policy.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]


def test_a_user_defined_loss_can_be_built_on_it(impl, device):
    batch = random_batch(device)
    logits = batch.logits.requires_grad_()
    out = token_log_ratio(Logits(logits), Logits(batch.ref_logits), batch.target_ids, batch.loss_mask, impl=impl)
    out.log_ratio.pow(2).sum().backward()
    gated = batch.loss_mask & (out.log_ratio.abs() < 1.5)
    assert torch.equal((logits.grad != 0).any(-1), gated & (out.log_ratio != 0))


@pytest.mark.parametrize("kind", [Logits, TokenLogp])
def test_no_gradient_reaches_the_reference(impl, device, kind):
    batch = random_batch(device)
    ids, mask = batch.target_ids, batch.loss_mask
    leaf = batch.ref_logits if kind is Logits else token_logp(Logits(batch.ref_logits), ids, mask)
    policy = TokenLogp(token_logp(Logits(batch.logits), ids, mask).requires_grad_())
    out = token_log_ratio(policy, kind(leaf.requires_grad_()), ids, mask, impl=impl)
    out.log_ratio.sum().backward()
    assert not out.ref_logp.requires_grad
    assert leaf.grad is None


# Mask and counts


def test_masked_tokens_are_0_and_get_no_gradient(device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, [[1, 0, 1, 0, 1]], device=device)
    out = token_log_ratio(TokenLogp(policy), reference, ids, mask)
    out.log_ratio.sum().backward()
    assert out.log_ratio.tolist() == [[-1.5, 0.0, 0.0, 0.0, 1.5]]
    assert policy.grad.tolist() == [[0.0, 0.0, 1.0, 0.0, 0.0]]


def test_the_unclamped_share_counts_over_the_real_mask(device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, [[1, 1, 1, 0, 1]], device=device)
    out = token_log_ratio(TokenLogp(policy), reference, ids, mask)
    assert out.clamped_low_fraction.item() == 0.25
    assert out.clamped_high_fraction.item() == 0.25
    assert out.unclamped_fraction.item() == 0.5


def test_right_after_a_sync_everything_is_unclamped(device):
    policy, reference, ids, mask = token_batch(LOGP, LOGP, device=device)
    assert token_log_ratio(TokenLogp(policy), reference, ids, mask).unclamped_fraction == 1


# Extremes


def test_a_target_that_the_policy_excludes_lands_on_the_lower_bound(device):
    policy, reference, ids, mask = token_batch([[-math.inf]], [[-1.0]], device=device)
    assert token_log_ratio(TokenLogp(policy), reference, ids, mask).log_ratio.item() == -1.5


# Bounds


@pytest.mark.parametrize("bounds", [(0.1, 1.0), (-1.0, -0.1), (1.5, -1.5), (math.inf, math.inf)])
def test_bounds_that_exclude_0_are_refused(bounds):
    with pytest.raises(ValueError, match=r"expected log_epsilon_P <= 0 <= log_epsilon_R, got"):
        HumanlineClamp(*bounds)


@pytest.mark.parametrize("bounds", [(math.nan, 1.0), (-1.0, math.nan), ("-1", 1.0), (True, 1.0)])
def test_bounds_that_are_not_numbers_are_refused(bounds):
    with pytest.raises(ValueError, match="expected a number of nats, got"):
        HumanlineClamp(*bounds)


def test_bounds_that_float32_holds_only_as_infinity_are_refused_by_name():
    largest = torch.finfo(torch.float32).max
    HumanlineClamp(-largest, largest)
    HumanlineClamp(-math.inf, math.inf)
    with pytest.raises(ValueError, match=r"^log_epsilon_P: expected a number of nats, got -1e\+39"):
        HumanlineClamp(-1e39, 1.0)
    with pytest.raises(ValueError, match=r"^log_epsilon_R: expected a number of nats, got 1e\+39"):
        HumanlineClamp(-1.0, 1e39)


def test_bounds_of_0_are_legal_and_let_nothing_through(device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, device=device)
    out = token_log_ratio(TokenLogp(policy), reference, ids, mask, clamp=HumanlineClamp(0, 0))
    assert out.log_ratio.abs().sum() == 0


# Layout


def test_one_pass_over_both_models_gives_the_bits_of_two(device):
    from humanline_fused.autograd import token_logp as fused

    batch = random_batch(device, dtype=torch.bfloat16)
    ids, mask = batch.target_ids, batch.loss_mask
    logp, _, ref_logp = fused(batch.logits, batch.ref_logits, ids, mask)
    assert torch.equal(logp, token_logp(Logits(batch.logits), ids, mask, impl="triton"))
    assert torch.equal(ref_logp, token_logp(Logits(batch.ref_logits), ids, mask, impl="triton"))
