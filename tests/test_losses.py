"""Properties common to all three losses: values, gradients, kinds of scores, bounds. Rows: test_rows.py."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from humanline_fused import HumanlineClamp, Logits, TokenLogp, token_log_ratio, token_logp
from tests.inputs import Batch, loss_and_gradient, loss_of, random_batch
from tests.oracle import assert_matches_oracle

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CLAMPS = [None, HumanlineClamp(), HumanlineClamp(-0.2, 0.4)]


# Value and gradient


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clamp", CLAMPS)
def test_triton_is_as_close_to_the_float64_oracle_as_eager_is(device, objective, dtype, clamp):
    assert_matches_oracle(objective, random_batch(device, dtype=dtype), clamp=clamp)


def test_a_vocabulary_of_several_tiles_gives_the_oracle_s_answer(device, objective):
    assert_matches_oracle(objective, random_batch(device, B=2, T=2, V=9001, dtype=torch.bfloat16))


def test_eager_s_gradient_is_the_derivative_of_its_value_and_has_one_itself(device, objective):
    batch = random_batch(device, B=2, T=3, V=5, dtype=torch.float64)

    def loss(logits):
        return loss_of(objective, Logits(logits), Logits(batch.ref_logits), batch).loss

    assert torch.autograd.gradcheck(loss, batch.logits.requires_grad_())
    assert torch.autograd.gradgradcheck(loss, batch.logits)


def test_the_gradient_scales_with_grad_output(device, objective, impl):
    batch = random_batch(device)
    _, once = loss_and_gradient(objective, batch, impl=impl)
    _, eightfold = loss_and_gradient(objective, batch, impl=impl, grad_output=8.0)
    assert once.abs().max() > 0
    torch.testing.assert_close(eightfold, 8 * once)


def test_a_grad_output_of_nan_reaches_no_masked_row(device, objective, impl):
    batch = random_batch(device)
    _, gradient = loss_and_gradient(objective, batch, impl=impl, grad_output=float("nan"))
    assert gradient[batch.loss_mask].isnan().any()
    assert (gradient[~batch.loss_mask] == 0).all()


def test_backward_twice_gives_the_same_gradient_twice(device, objective, impl):
    batch = random_batch(device)
    logits = batch.logits.clone().requires_grad_()
    loss = loss_of(objective, Logits(logits), Logits(batch.ref_logits), batch, impl=impl).loss
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(loss, logits)
    assert torch.equal(first, second)


def test_no_gradient_reaches_the_advantages(device, impl):
    batch = replace(random_batch(device), advantages=torch.ones(4, device=device, requires_grad=True))
    loss_of("grpo", Logits(batch.logits.requires_grad_()), Logits(batch.ref_logits), batch, impl=impl).loss.backward()
    assert batch.advantages.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float64_log_probs_beside_logits_take_the_logits_precision(device, objective, impl, dtype):
    batch = random_batch(device, dtype=dtype)
    ref_logp = token_logp(Logits(batch.ref_logits), batch.target_ids, batch.loss_mask)
    single, double = (
        loss_of(objective, Logits(batch.logits), TokenLogp(ref), batch, impl=impl)
        for ref in (ref_logp, ref_logp.double())
    )
    assert double.loss.dtype == torch.float32
    assert torch.equal(single.loss, double.loss)


def test_no_gradient_reaches_the_reference(device, objective, impl):
    batch = random_batch(device)
    logits, ref_logits = batch.logits.clone().requires_grad_(), batch.ref_logits.clone().requires_grad_()
    loss_of(objective, Logits(logits), Logits(ref_logits), batch, impl=impl).loss.backward()
    assert logits.grad is not None
    assert ref_logits.grad is None


def test_everything_but_the_loss_is_detached(device, objective, impl):
    batch = random_batch(device)
    out = loss_of(objective, Logits(batch.logits.requires_grad_()), Logits(batch.ref_logits), batch, impl=impl)
    attached = [name for name in out.__dataclass_fields__ if getattr(out, name).requires_grad]
    assert attached == ["loss"]
    assert not out.unclamped_fraction.requires_grad


def test_double_backward_through_a_kernel_is_a_clear_error(device, objective):
    batch = random_batch(device)
    logits = batch.logits.requires_grad_()
    loss = loss_of(objective, Logits(logits), Logits(batch.ref_logits), batch, impl="triton").loss
    with pytest.raises(RuntimeError, match=r"double backward: .* impl='eager'"):
        torch.autograd.grad(loss, logits, create_graph=True)


# Sources


@pytest.mark.parametrize("policy_is_logits", [True, False])
@pytest.mark.parametrize("reference_is_logits", [True, False])
def test_every_mix_of_sources_gives_the_same_loss_and_gradient(
    device, objective, impl, policy_is_logits, reference_is_logits
):
    batch = random_batch(device)
    expected, expected_gradient = loss_and_gradient(objective, batch, impl=impl)
    logits = batch.logits.clone().requires_grad_()
    ids, mask = batch.target_ids, batch.loss_mask
    policy, reference = Logits(logits), Logits(batch.ref_logits)
    if not policy_is_logits:
        policy = TokenLogp(token_logp(policy, ids, mask, impl=impl))
    if not reference_is_logits:
        reference = TokenLogp(token_logp(reference, ids, mask, impl=impl))
    out = loss_of(objective, policy, reference, batch, impl=impl)
    out.loss.backward()
    assert torch.equal(out.loss, expected["loss"])
    assert torch.equal(logits.grad, expected_gradient)


@pytest.mark.parametrize(
    ("of_policy", "of_reference"),
    [
        ({}, {"temperature": 0.7}),
        ({}, {"softcap": 20.0}),
        ({}, {"scale": 0.7}),
        ({"temperature": 0.7}, {"temperature": torch.full((4, 5), 0.5)}),
        ({"temperature": torch.full((4, 5), 0.7)}, {"temperature": torch.full((4, 5), 0.5)}),
    ],
)
def test_policy_and_reference_may_have_softmaxes_of_their_own(device, impl, of_policy, of_reference):
    batch = random_batch(device)
    of_policy, of_reference = (
        {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in softmax.items()}
        for softmax in (of_policy, of_reference)
    )
    policy, reference = Logits(batch.logits.requires_grad_(), **of_policy), Logits(batch.ref_logits, **of_reference)
    assert_each_is_scored_as_alone(policy, reference, batch, impl)


def test_policy_and_reference_may_have_dtypes_of_their_own(device, impl):
    batch = random_batch(device)
    policy, reference = Logits(batch.logits.requires_grad_()), Logits(batch.ref_logits.bfloat16())
    assert_each_is_scored_as_alone(policy, reference, batch, impl)


def assert_each_is_scored_as_alone(policy, reference, batch, impl):
    tokens = batch.target_ids, batch.loss_mask
    ratio = token_log_ratio(policy, reference, *tokens, impl=impl)
    for out in (ratio, loss_of("dpo", policy, reference, batch, impl=impl)):
        assert torch.equal(out.logp, token_logp(policy, *tokens, impl=impl))
        assert torch.equal(out.ref_logp, token_logp(reference, *tokens, impl=impl))


# Bounds


def test_infinite_bounds_are_the_plain_loss_bitwise__oracle_a(device, objective, impl):
    batch = random_batch(device)
    plain, plain_gradient = loss_and_gradient(objective, batch, impl=impl, clamp=None)
    unbounded, gradient = loss_and_gradient(objective, batch, impl=impl, clamp=HumanlineClamp(-math.inf, math.inf))
    assert all(torch.equal(plain[name], unbounded[name]) for name in plain)
    assert torch.equal(plain_gradient, gradient)


def test_the_clamp_changes_the_loss_where_it_binds(device, objective, impl):
    batch = random_batch(device)
    plain, _ = loss_and_gradient(objective, batch, impl=impl, clamp=None)
    clamped, _ = loss_and_gradient(objective, batch, impl=impl)
    assert clamped["clamped_low_fraction"] > 0
    assert clamped["clamped_high_fraction"] > 0
    assert not torch.equal(plain["loss"], clamped["loss"])


def test_a_token_has_a_gradient_inside_the_bounds_and_exactly_none_outside__oracle_c(device, objective, impl):
    batch = random_batch(device)
    out, gradient = loss_and_gradient(objective, batch, impl=impl, **({"beta": 0.0} if objective == "grpo" else {}))
    log_ratio = out["logp"] - out["ref_logp"]
    outside = batch.loss_mask & ((log_ratio < -1.5) | (log_ratio > 1.5))
    assert outside.any()
    assert (gradient[outside] == 0).all()
    if objective != "grpo":  # PPO's clip stops further gradients
        assert (gradient[batch.loss_mask & ~outside] != 0).any(-1).all()


@pytest.mark.parametrize("bounds", [(-1.5, 1.5), (-1.0, 0.25), (0.0, 0.0), (-math.inf, 0.5)])
def test_the_gradient_passes_on_closed_bounds_and_not_one_ulp_outside__oracle_c(device, objective, impl, bounds):
    edges = [b for b in bounds if math.isfinite(b)]
    log_ratio = torch.tensor([edge for bound in edges for edge in (bound, *neighbours(bound))])
    inside = ((log_ratio >= bounds[0]) & (log_ratio <= bounds[1])).to(device)
    policy = log_ratio.expand(2, -1).clone().to(device).requires_grad_()
    shape = policy.shape
    batch = Batch(
        logits=policy,
        ref_logits=policy,
        target_ids=torch.zeros(shape, dtype=torch.long, device=device),
        loss_mask=torch.ones(shape, dtype=torch.bool, device=device),
        desirable=torch.ones(2, dtype=torch.bool, device=device),
        advantages=torch.ones(2, device=device),
    )
    open_clip = {"beta": 0.0, "epsilon": 1.0, "epsilon_high": 1e9} if objective == "grpo" else {}
    reference = TokenLogp(torch.zeros_like(policy))
    out = loss_of(objective, TokenLogp(policy), reference, batch, clamp=HumanlineClamp(*bounds), impl=impl, **open_clip)
    out.loss.backward()
    assert torch.equal(policy.grad != 0, inside.expand(2, -1))


def test_right_after_a_sync_bounds_of_0_let_the_whole_gradient_through(device, objective, impl, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "clamp", clamp_whose_gradient_is_0_on_the_bounds)
    batch = random_batch(device)
    policy = token_logp(Logits(batch.logits), batch.target_ids, batch.loss_mask)
    gradients = []
    for bound in (0.0, 0.5):
        clip = {"epsilon": bound, "epsilon_high": bound} if objective == "grpo" else {}
        leaf = policy.clone().requires_grad_()
        clamp = HumanlineClamp(-bound, bound)
        out = loss_of(objective, TokenLogp(leaf), TokenLogp(policy), batch, clamp=clamp, impl=impl, **clip)
        gradients.append(torch.autograd.grad(out.loss, leaf)[0])
    assert torch.equal(*gradients)
    assert torch.equal(gradients[0] != 0, batch.loss_mask)


def clamp_whose_gradient_is_0_on_the_bounds(x: torch.Tensor, min=-math.inf, max=math.inf) -> torch.Tensor:
    """torch.clamp as of 2.14; in earlier versions the gradient on the bounds was 1."""
    return torch.clamp(x.where((x > min) & (x < max), x.detach()), min, max)


def test_a_log_prob_that_is_not_a_number_makes_the_loss_and_its_own_gradient_nan(device, objective, impl):
    batch = random_batch(device)
    policy = token_logp(Logits(batch.logits), batch.target_ids, batch.loss_mask)
    poisoned = batch.loss_mask.nonzero()[0].tolist()
    leaf = policy.clone().index_put_(tuple(torch.tensor(poisoned)), torch.tensor(math.nan)).requires_grad_()
    out = loss_of(objective, TokenLogp(leaf), TokenLogp(policy), batch, impl=impl)
    out.loss.backward()
    assert out.loss.isnan()
    assert leaf.grad[tuple(poisoned)].isnan()


def neighbours(bound: float) -> list[float]:
    value = torch.tensor(bound)
    return [torch.nextafter(value, value + sign).item() for sign in (-1.0, 1.0)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.integers(1, 2),
    T=st.integers(1, 6),
    V=st.integers(2, 70),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    low=st.floats(-3, 0),
    high=st.floats(0, 3),
)
def test_any_shape_mask_and_bounds_match_the_oracle(device, objective, pairs, T, V, seed, scale, low, high):
    batch = random_batch(device, 2 * pairs, T, V, spread=scale, seed=seed)
    logits = torch.stack([batch.logits, batch.ref_logits])
    # Bounds that meet a log-ratio within its rounding have two right answers; such draws are moved off it.
    logp = logits.double().log_softmax(-1).gather(-1, batch.target_ids.expand(2, -1, -1)[..., None])[..., 0]
    log_ratio = logp[0] - logp[1]
    if any(((log_ratio - bound).abs() < 1e-4).any() for bound in (low, high)):
        low, high = low - 1e-3, high + 1e-3
    assert_matches_oracle(objective, batch, clamp=HumanlineClamp(low, high))


# Implementation


def test_same_input_same_bits(device, objective, impl):
    batch = random_batch(device)
    runs = [loss_and_gradient(objective, batch, impl=impl) for _ in range(2)]
    assert torch.equal(runs[0][0]["loss"], runs[1][0]["loss"])
    assert torch.equal(runs[0][1], runs[1][1])


def test_a_batch_on_which_nothing_needs_a_gradient_has_no_graph(device, objective, impl):
    batch = random_batch(device)
    assert not loss_of(objective, Logits(batch.logits), Logits(batch.ref_logits), batch, impl=impl).loss.requires_grad
    with torch.no_grad():
        policy = Logits(batch.logits.requires_grad_())
        assert not loss_of(objective, policy, Logits(batch.ref_logits), batch, impl=impl).loss.requires_grad
