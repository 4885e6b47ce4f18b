"""The softmax's temperature, softcap and scale, and its entropy (docs/math.md, equations 1, 12 to 15)."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from humanline_fused import LMHead, Logits, TokenLogp, token_log_ratio, token_logp, token_logp_and_entropy
from tests.error_budget import PER_NAT, RSQRT, assert_within_budget
from tests.inputs import loss_of, random_batch

ONE = torch.ones(1, 1, dtype=torch.bool)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def score(values, target=0, impl="eager", device="cpu", **softmax):
    logits = torch.tensor([[values]], device=device)
    ids = torch.tensor([[target]], device=device)
    out = token_logp_and_entropy(Logits(logits, **softmax), ids, ONE.to(device), impl=impl)
    return out.logp.item(), out.entropy.item()


# Value, by hand


def test_a_uniform_row_has_the_entropy_of_its_number_of_tokens(device, impl):
    assert score([0.5, 0.5, 0.5], impl=impl, device=device)[1] == pytest.approx(math.log(3), rel=1e-6)


def test_a_half_a_third_and_a_sixth_have_their_entropy(device, impl):
    p = [1 / 2, 1 / 3, 1 / 6]
    expected = -sum(x * math.log(x) for x in p)
    assert score([math.log(x) + 5 for x in p], impl=impl, device=device)[1] == pytest.approx(expected, rel=1e-6)


def test_temperature_divides_the_logits(device, impl):
    logp, _ = score([2.0, 0.0, 0.0], impl=impl, device=device, temperature=2.0)
    assert logp == pytest.approx(1 - math.log(math.e + 2), rel=1e-6)


def test_scale_multiplies_them(device, impl):
    logp, _ = score([2.0, 0.0, 0.0], impl=impl, device=device, scale=0.5)
    assert logp == pytest.approx(1 - math.log(math.e + 2), rel=1e-6)


def test_a_softcap_bends_them_back_after_scale_and_before_temperature(device, impl):
    logp, _ = score([8.0, 0.0, 0.0], impl=impl, device=device, scale=0.5, softcap=2.0, temperature=0.5)
    capped = 2 * math.tanh(4 / 2) / 0.5
    assert logp == pytest.approx(capped - math.log(math.exp(capped) + 2), rel=1e-5)


def test_one_certain_token_has_no_entropy(device, impl):
    assert score([200.0, 0.0, 0.0], impl=impl, device=device)[1] == pytest.approx(0, abs=PER_NAT)


def test_tokens_that_are_impossible_do_not_disturb_the_entropy(device, impl):
    assert score([1.0, 1.0, -math.inf], impl=impl, device=device)[1] == pytest.approx(math.log(2), rel=1e-6)


# Against the oracle


def softmaxes(batch, generator=None):
    per_token = 0.5 + torch.rand(batch.target_ids.shape, generator=torch.Generator().manual_seed(5))
    return {
        "plain": {},
        "temperature": {"temperature": 0.7},
        "temperature per token": {"temperature": per_token.to(batch.logits.device)},
        "scale": {"scale": 1.7},
        "softcap": {"softcap": 5.0, "scale": 0.8, "temperature": 0.6},
        "softcap, temperature per token": {"softcap": 5.0, "temperature": per_token.to(batch.logits.device)},
    }


def both(batch, softmax, impl, weights):
    leaf = batch.logits.detach().clone().requires_grad_()
    out = token_logp_and_entropy(Logits(leaf, **softmax), batch.target_ids, batch.loss_mask, impl=impl)
    dlogp, dentropy = (w.to(out.logp.dtype) for w in weights)
    torch.autograd.backward([out.logp, out.entropy], [dlogp, dentropy])
    return {"logp": out.logp.detach(), "entropy": out.entropy.detach(), "dlogits": leaf.grad}


TANH = 2 * RSQRT + 4 * torch.finfo(torch.float32).eps
"""Relative error of the kernels' tanh: a squared rsqrt.approx, and the rounding of two polynomials."""


def capped_scores(batch, softcap, scale):
    """Return the largest capped logit, before temperature: its rounding is ``TANH`` of it."""
    logits = (batch.logits.double() * (scale / softcap)).where(batch.logits.isfinite(), 0.0)
    return softcap * logits.tanh().abs().max().item()


def assert_both_match_the_oracle(batch, softmax):
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(batch.target_ids.shape, generator=generator).to(batch.logits.device) for _ in range(2)]
    actual, eager = (both(batch, softmax, impl, weights) for impl in ("triton", "eager"))
    oracle = both(batch.to(torch.float64), softmax, "eager", weights)
    temperature = torch.as_tensor(softmax.get("temperature", 1.0)).min().item()
    # An entropy is the difference of log S and Σ w log w / S, each as large as the target's log-prob.
    log_probs = 2 * oracle["logp"].abs().max().item() + oracle["entropy"].abs().max().item()
    if "softcap" in softmax:
        # A log-prob is the difference of two capped logits.
        capped = capped_scores(batch, softmax["softcap"], softmax.get("scale", 1.0)) / temperature
        log_probs += 2 * capped * TANH / PER_NAT
    gain = softmax.get("scale", 1.0) / temperature
    unit = {"logp": 1.0, "entropy": 1.0, "dlogits": gain * max(w.abs().max().item() for w in weights)}
    for name, value in oracle.items():
        assert_within_budget(actual[name], eager[name], value, name, log_probs=log_probs, unit=unit[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(softmaxes(random_batch(torch.device("cpu")))))
def test_log_prob_entropy_and_gradient_are_as_close_to_the_oracle_as_eager_is(device, dtype, name):
    batch = random_batch(device, dtype=dtype)
    assert_both_match_the_oracle(batch, softmaxes(batch)[name])


@pytest.mark.parametrize("name", ["plain", "softcap"])
def test_a_vocabulary_of_several_tiles_is_too(device, name):
    batch = random_batch(device, B=2, T=1, V=9001, dtype=torch.bfloat16)
    assert_both_match_the_oracle(batch, softmaxes(batch)[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [1.0, 30.0, 1e3, 1e5, 1e8, 1e30])
def test_a_softcap_of_any_size_is_too(device, softcap, dtype):
    assert_both_match_the_oracle(random_batch(device, V=70, dtype=dtype), {"softcap": softcap})


@pytest.mark.parametrize("impl", ["eager", "triton"])
def test_a_softcap_far_above_the_logits_changes_nothing(device, impl):
    batch = random_batch(device)
    capped, plain = (
        token_logp(Logits(batch.logits, **softmax), batch.target_ids, batch.loss_mask, impl=impl)
        for softmax in ({"softcap": 1e8}, {})
    )
    # 1e8 · tanh(x / 1e8) is x, to x³ / 3e16
    budget = 2 * TANH * batch.logits.abs().max() + 2 * PER_NAT * (1 + plain.abs().max())
    assert (capped - plain).abs().max() <= budget


@pytest.mark.parametrize("offset", [1000.0, -1000.0])
def test_an_offset_of_1000_is_too(device, offset):
    batch = random_batch(device)
    batch.logits.add_(offset)
    assert_both_match_the_oracle(batch, {"temperature": 0.7})


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    V=st.integers(2, 70),
    seed=st.integers(0, 2**16),
    temperature=st.floats(0.25, 4),
    softcap=st.none() | st.floats(1, 50),
    scale=st.floats(0.25, 4),
    dtype=st.sampled_from(DTYPES),
)
def test_any_softmax_matches_the_oracle(device, V, seed, temperature, softcap, scale, dtype):
    softmax = {"temperature": temperature, "scale": scale} | ({} if softcap is None else {"softcap": softcap})
    assert_both_match_the_oracle(random_batch(device, 2, 2, V, dtype=dtype, seed=seed), softmax)


EXTREMES = {
    "nothing": lambda row: row,
    "−inf": lambda row: row.masked_fill(torch.arange(len(row)) % 3 == 1, -math.inf),
    "spike": lambda row: row.masked_fill(torch.arange(len(row)) == len(row) - 1, 300.0),
    "offset": lambda row: row + 1000,
    "lowest": lambda row: row.masked_fill(torch.arange(len(row)) % 2 == 1, torch.finfo(row.dtype).min),
    "equal": lambda row: torch.zeros_like(row),
    "certain": lambda row: row.masked_fill(torch.arange(len(row)) == 0, 60.0),
}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    V=st.integers(2, 70),
    seed=st.integers(0, 2**16),
    rows=st.lists(st.sampled_from(sorted(EXTREMES)), min_size=4, max_size=4),
    softmax=st.sampled_from([{}, {"temperature": 0.5}, {"softcap": 30.0}]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_rows_of_any_extremes_match_the_oracle_beside_each_other(device, V, seed, rows, softmax, dtype):
    batch = random_batch(device, 2, 2, V, dtype=dtype, seed=seed)
    batch.target_ids.zero_()  # this target is possible for every extreme
    for (b, t), name in zip([(0, 0), (0, 1), (1, 0), (1, 1)], rows, strict=True):
        batch.logits[b, t] = EXTREMES[name](batch.logits[b, t].cpu()).to(device)
    assert_both_match_the_oracle(batch, softmax)


@pytest.mark.parametrize("name", list(softmaxes(random_batch(torch.device("cpu")))))
def test_eager_s_gradients_are_the_derivatives_of_its_values(device, name):
    batch = random_batch(device, B=2, T=2, V=5, dtype=torch.float64)
    softmax = softmaxes(batch)[name]

    def outputs(logits):
        out = token_logp_and_entropy(Logits(logits, **softmax), batch.target_ids, batch.loss_mask)
        return out.logp, out.entropy

    assert torch.autograd.gradcheck(outputs, batch.logits.requires_grad_())
    assert torch.autograd.gradgradcheck(outputs, batch.logits)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("source", ["logits", "head"])
def test_a_float64_gradient_with_a_temperature_per_token_has_no_float32_rounding(source, softcap):
    batch = random_batch(torch.device("cpu"), dtype=torch.float64)
    head = torch.eye(batch.logits.shape[-1], dtype=torch.float64)
    number = torch.tensor(0.7).item()  # that float32 holds, and not its inverse
    gradients = []
    for temperature in (number, torch.full(batch.target_ids.shape, number)):
        leaf = batch.logits.detach().clone().requires_grad_()
        softmax = {"temperature": temperature, "softcap": softcap}
        scores = Logits(leaf, **softmax) if source == "logits" else LMHead(leaf, head, **softmax)
        token_logp(scores, batch.target_ids, batch.loss_mask, impl="eager").sum().backward()
        gradients.append(leaf.grad)
    # A score is rounded a few times, and its weight by as much as the score.
    allowed = 8 * torch.finfo(torch.float64).eps * (1 + batch.logits.abs().max() / number)
    assert (gradients[0] - gradients[1]).abs().max() <= allowed * gradients[0].abs().max()


@pytest.mark.parametrize("part", ["logp", "entropy"])
def test_each_of_the_two_has_a_gradient_of_its_own(device, impl, part):
    batch = random_batch(device)
    gradients = []
    for impossible in (False, True):
        leaf = batch.logits.clone().requires_grad_()
        out = token_logp_and_entropy(Logits(leaf), batch.target_ids, batch.loss_mask, impl=impl)
        total = getattr(out, part).sum()
        if impossible:
            total = total + 0 * (out.entropy if part == "logp" else out.logp).sum()
        gradients.append(torch.autograd.grad(total, leaf)[0])
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


# Rows


def test_the_log_prob_beside_an_entropy_is_the_log_prob_alone(device, impl):
    batch = random_batch(device)
    out = token_logp_and_entropy(Logits(batch.logits), batch.target_ids, batch.loss_mask, impl=impl)
    assert torch.equal(out.logp, token_logp(Logits(batch.logits), batch.target_ids, batch.loss_mask, impl=impl))
    assert (out.entropy[~batch.loss_mask] == 0).all()
    assert (out.entropy[batch.loss_mask] > 0).all()


def test_one_softmax_for_both_is_read_in_one_pass_with_the_bits_of_two(device, objective, impl):
    batch = random_batch(device)
    softmax = softmaxes(batch)["softcap, temperature per token"]
    policy, reference = Logits(batch.logits, **softmax), Logits(batch.ref_logits, **softmax)
    ref_logp = token_logp(reference, batch.target_ids, batch.loss_mask, impl=impl)
    together = loss_of(objective, policy, reference, batch, impl=impl)
    apart = loss_of(objective, policy, TokenLogp(ref_logp), batch, impl=impl)
    assert torch.equal(together.loss, apart.loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_gap_between_target_and_maximum_falls_between_one_sum_and_the_other(device, dtype):
    batch = random_batch(device, B=1, T=2, V=3, dtype=dtype)
    batch.loss_mask[:], batch.target_ids[:] = True, 0
    for gap in range(76, 93, 2):
        batch.logits[0, 0] = torch.tensor([0.0, gap, gap - 1])
        batch.logits[0, 1] = torch.tensor([0.0, gap + 1, gap - 1])
        assert_both_match_the_oracle(batch, {})


@pytest.mark.parametrize("fill", [-1e3, -1e6, -1e9, -2.386e9, -4.355e9, "lowest", -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_impossible_target_leaves_the_other_probabilities_their_digits(device, dtype, fill):
    fill = torch.finfo(dtype).min if fill == "lowest" else fill
    logits = torch.tensor([[[fill, 1.5, 0.7, -0.3]]], dtype=dtype, device=device)
    ids = torch.zeros(1, 1, dtype=torch.long, device=device)
    gradients = []
    for impl in ("triton", "eager"):
        leaf = logits.clone().requires_grad_()
        out = token_logp_and_entropy(Logits(leaf), ids, ONE.to(device), impl=impl)
        (out.logp + out.entropy).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_target_of_the_dtype_s_lowest_number_is_scored_as_the_oracle_scores_it(device, dtype):
    batch = random_batch(device, dtype=dtype)
    batch.target_ids.zero_()
    batch.logits[..., 0] = torch.finfo(dtype).min
    batch.logits[1] = batch.logits[1].masked_fill(torch.arange(37, device=device) > 4, torch.finfo(dtype).min)
    assert_both_match_the_oracle(batch, {})


def test_a_temperature_may_be_so_small_that_equal_logits_are_far_beyond_float32_s_integers(device, impl):
    """30.12 / 1e-8 · log2 e is 4e9 bits, whose rounding is hundreds of bits."""
    logits = torch.full((1, 1, 40), 30.12, device=device, requires_grad=True)
    ids = torch.full((1, 1), 3, device=device)
    out = token_logp_and_entropy(Logits(logits, temperature=1e-8), ids, ONE.to(device), impl=impl)
    out.logp.sum().backward()
    assert out.logp.item() == pytest.approx(-math.log(40), rel=1e-6)
    expected = torch.full((40,), -1 / 40)
    expected[3] += 1
    torch.testing.assert_close(1e-8 * logits.grad[0, 0].cpu(), expected, rtol=1e-6, atol=0)


def test_a_capped_target_of_millions_is_scored_as_the_oracle_scores_it(device):
    batch = random_batch(device, B=1, T=2, V=300)
    batch.loss_mask[:] = True
    batch.logits[..., 5] = 2e6
    batch.target_ids[:] = 5
    assert_both_match_the_oracle(batch, {"softcap": 30.0})


@pytest.mark.parametrize("softmax", [{}, {"temperature": 2.0}, {"scale": 0.5}, {"softcap": 30.0}])
@pytest.mark.parametrize("fill", ["lowest", "highest", -1e30, 1e12, -1e9, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_of_one_number_is_uniform_whatever_the_number(device, impl, dtype, fill, softmax):
    limits = torch.finfo(dtype)
    fill = {"lowest": limits.min, "highest": limits.max}.get(fill, fill)
    logits = torch.full(
        (1, 1, 21), min(max(fill, limits.min), limits.max), dtype=dtype, device=device, requires_grad=True
    )
    ids = torch.full((1, 1), 3, device=device)
    out = token_logp_and_entropy(Logits(logits, **softmax), ids, ONE.to(device), impl=impl)
    (out.logp + out.entropy).sum().backward()
    assert out.logp.item() == pytest.approx(-math.log(21), rel=1e-6)
    assert out.entropy.item() == pytest.approx(math.log(21), rel=1e-6)
    gain = 0.0 if "softcap" in softmax else softmax.get("scale", 1.0) / softmax.get("temperature", 1.0)
    expected = torch.full((21,), -gain / 21)
    expected[3] += gain
    # 12 epsilons: 1 − tanh², where tanh is 1 to 6 epsilons
    precision = limits.eps + 12 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(logits.grad[0, 0].cpu().float(), expected, rtol=0, atol=precision)


def test_log_ratios_of_a_target_that_both_models_mask_are_0(device, impl):
    logits = torch.tensor([[[torch.finfo(torch.float32).min, 1.0, 2.0]]], device=device)
    ids = torch.zeros(1, 1, dtype=torch.long, device=device)
    out = token_log_ratio(Logits(logits), Logits(logits.clone()), ids, ONE.to(device), clamp=None, impl=impl)
    assert out.log_ratio.item() == 0


@pytest.mark.parametrize("softmax", [{}, {"softcap": 600.0}])
def test_a_spike_is_read_again_for_the_entropy_too(device, softmax):
    batch = random_batch(device, B=1, T=2, V=300)
    batch.loss_mask[:] = True
    batch.target_ids[:] = 5
    batch.logits[..., 200] = 500.0
    assert_both_match_the_oracle(batch, softmax)


def test_a_poisoned_row_has_no_entropy(device, impl):
    batch = random_batch(device)
    batch.loss_mask[0, 0] = True
    batch.logits[0, 0, 3] = math.nan
    out = token_logp_and_entropy(Logits(batch.logits), batch.target_ids, batch.loss_mask, impl=impl)
    assert out.entropy[0, 0].isnan()
    assert out.entropy.isnan().sum() == 1


def test_no_gradient_reaches_the_temperature(device, impl):
    batch = random_batch(device)
    temperature = torch.ones(batch.target_ids.shape, device=device, requires_grad=True)
    policy = Logits(batch.logits.requires_grad_(), temperature=temperature)
    token_logp(policy, batch.target_ids, batch.loss_mask, impl=impl).sum().backward()
    assert temperature.grad is None


# Errors


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"softcap": -1.0}, {"scale": math.inf}, {"softcap": True}])
def test_numbers_that_are_not_positive_are_refused(wrong):
    batch = random_batch(torch.device("cpu"))
    with pytest.raises(ValueError, match=f"scores {next(iter(wrong))}: expected a finite number > 0, got"):
        token_logp(Logits(batch.logits, **wrong), batch.target_ids, batch.loss_mask)


def test_a_temperature_that_does_not_fit_the_ids_is_refused():
    batch = random_batch(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"scores temperature: expected .* \[4, 5\] on cpu, got float32 \[4\]"):
        token_logp(Logits(batch.logits, temperature=torch.ones(4)), batch.target_ids, batch.loss_mask)


def test_log_probs_alone_have_no_entropy_to_give():
    batch = random_batch(torch.device("cpu"))
    with pytest.raises(TypeError, match=r"scores: expected Logits\(\.\.\.\) or LMHead\(\.\.\.\), got TokenLogp"):
        token_logp_and_entropy(TokenLogp(torch.zeros(4, 5)), batch.target_ids, batch.loss_mask)
