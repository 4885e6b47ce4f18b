"""Humanline sampling: draws, rejection, its limit, and the losses with it (docs/math.md, equations 23 to 26)."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from humanline_fused import (
    HumanlineClamp,
    HumanlineSampling,
    Logits,
    TokenLogp,
    dpo_loss,
    grpo_loss,
    token_log_ratio,
    token_logp,
)
from humanline_fused.perception.sampling import acceptance, log_beta, log_maxima, rejected
from tests.head_inputs import answer, head_batch
from tests.inputs import loss_of, random_batch, token_batch
from tests.test_packed import padded_and_packed

STANDARD_ERRORS = 5
"""Of a share over n draws: a right implementation fails one test in two million."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_share(kept: Tensor, expected: float) -> None:
    """Assert that the share of True is the expected probability, within the error of that many draws."""
    error = math.sqrt(expected * (1 - expected) / kept.numel())
    assert abs(kept.double().mean().item() - expected) <= STANDARD_ERRORS * error


def kept_of(log_ratio: Tensor, loss_mask: Tensor, sampling: HumanlineSampling) -> Tensor:
    low, high = rejected(log_ratio, loss_mask, sampling)
    return loss_mask & ~low & ~high


def all_count(log_ratio: Tensor) -> Tensor:
    return torch.ones(log_ratio.shape, dtype=torch.bool)


# Acceptance


def test_a_token_at_a_quarter_of_the_maximum_is_kept_half_of_the_time():
    log_ratio = torch.tensor([1.0, 4.0, 5.0]).log()
    assert acceptance(log_ratio, math.log(4.0), 0.5).tolist() == pytest.approx([0.5, 1.0, 1.0], rel=1e-7)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0, 2.0, 3.9])
def test_the_share_of_kept_tokens_is_the_product_of_both_acceptances(ratio):
    log_ratio = torch.full((1, 100_000), math.log(ratio), dtype=torch.float64)
    low, high = rejected(log_ratio, all_count(log_ratio), HumanlineSampling(generator=seeded(), maxima=(4.0, 4.0)))
    assert_share(~low, (ratio / 4) ** 0.5)
    assert_share(~high, (1 / (4 * ratio)) ** 0.01)
    assert_share(~low & ~high, (ratio / 4) ** 0.5 * (1 / (4 * ratio)) ** 0.01)


def test_a_draw_too_small_for_a_float_is_compared_all_the_same():
    draws = log_beta((100_000,), 0.01, generator=seeded())
    assert draws.isfinite().all()
    assert_share(draws < -1000.0, math.exp(-0.01 * 1000))  # e^-1000 is 0 in float64


def test_a_ratio_is_compared_in_float64():
    bound = -1.0 - math.log(3)
    draws = torch.tensor([bound - 1e-12, bound + 1e-12], dtype=torch.float64).expand(2, 1, 2)
    ratio, sampling = torch.tensor([[-1.0, -1.0]]), HumanlineSampling(draws=draws, maxima=(3, 3))
    assert rejected(ratio, all_count(ratio), sampling).low.tolist() == [[False, True]]
    assert rejected(-ratio, all_count(ratio), sampling).high.tolist() == [[False, True]]


def test_a_token_that_does_not_count_is_not_rejected():
    log_ratio, draws = torch.zeros(1, 2), torch.ones(2, 1, 2)
    low, high = rejected(log_ratio, torch.tensor([[True, False]]), HumanlineSampling(draws=draws))
    assert low.tolist() == high.tolist() == [[True, False]]


def test_draws_of_another_shape_are_refused():
    sampling = HumanlineSampling(draws=torch.zeros(2, 1, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"draws: expected two for each token, \[2, 3, 4\], got \[2, 1, 1\]"):
        rejected(torch.zeros(3, 4), torch.ones(3, 4, dtype=torch.bool), sampling)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_a_gamma_of_0_draws_0(beta):
    assert log_beta((10,), 0.0, beta, generator=seeded()).tolist() == [-math.inf] * 10


@pytest.mark.parametrize(("gamma", "beta"), [(2.0, 3.0), (0.5, 1.5), (30.0, 1.0)])
def test_draws_have_the_mean_and_the_variance_of_the_beta_distribution(gamma, beta):
    n = 100_000
    draws = log_beta((n,), gamma, beta, generator=seeded()).exp()
    mean = gamma / (gamma + beta)
    variance = mean * (1 - mean) / (gamma + beta + 1)
    assert abs(draws.mean().item() - mean) <= STANDARD_ERRORS * math.sqrt(variance / n)
    fourth = ((draws - mean) ** 4).mean().item()
    assert abs(draws.var().item() - variance) <= STANDARD_ERRORS * math.sqrt((fourth - variance**2) / n)


def test_the_general_draw_agrees_with_the_closed_form_at_a_beta_of_1():
    draws = log_beta((100_000,), 0.5, torch.ones(()), generator=seeded())
    assert_share(draws < math.log(0.25), 0.5)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_a_gamma_of_0_keeps_every_token_of_its_side(beta):
    log_ratio = torch.linspace(-50, 50, 1001)[None]
    sampling = HumanlineSampling(gamma_P=0.0, gamma_R=0.0, beta_P=beta, beta_R=beta, generator=seeded())
    assert kept_of(log_ratio, all_count(log_ratio), sampling).all()


def test_equal_seeds_draw_equal_tokens():
    log_ratio = torch.linspace(-3, 3, 200)[None]
    first, second, other = (
        kept_of(log_ratio, all_count(log_ratio), HumanlineSampling(generator=seeded(s))) for s in (7, 7, 8)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_every_call_draws_afresh():
    log_ratio, sampling = torch.linspace(-3, 3, 200)[None], HumanlineSampling(generator=seeded())
    first, second = (kept_of(log_ratio, all_count(log_ratio), sampling) for _ in range(2))
    assert not torch.equal(first, second)


# Maxima


def test_the_maxima_are_those_of_the_tokens_that_count():
    log_ratio = torch.tensor([[-2.0, 1.0, 9.0, -9.0]])
    mask = torch.tensor([[True, True, False, False]])
    assert [m.item() for m in log_maxima(log_ratio, mask)] == [1.0, 2.0]


def test_the_maxima_are_those_of_the_ranks_that_are_named(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def reduced(maxima: Tensor, how: object, group: object) -> None:
        asked.append((how, group))
        maxima += 1

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", reduced)
    log_ratio = torch.tensor([[-2.0, 1.0]])
    ranks: Any = object()
    draws = torch.full((2, 1, 2), -0.5)
    assert log_maxima(log_ratio, all_count(log_ratio), "local") == (1, 2)
    assert asked == []
    assert log_maxima(log_ratio, all_count(log_ratio)) == (2, 3)
    rejected(log_ratio, all_count(log_ratio), HumanlineSampling(draws=draws, group=ranks))
    assert asked == [(torch.distributed.ReduceOp.MAX, None), (torch.distributed.ReduceOp.MAX, ranks)]


def test_the_maxima_are_at_least_1():
    mask = torch.tensor([[True]])
    assert [m.item() for m in log_maxima(torch.tensor([[3.0]]), mask)] == [3.0, 0.0]
    assert [m.item() for m in log_maxima(torch.tensor([[-3.0]]), mask)] == [0.0, 3.0]
    assert [m.item() for m in log_maxima(torch.tensor([[-3.0]]), ~mask)] == [0.0, 0.0]
    assert [m.item() for m in log_maxima(torch.empty(2, 0), torch.empty(2, 0, dtype=torch.bool))] == [0.0, 0.0]


def test_with_the_maxima_of_the_whole_a_part_draws_as_the_whole_does():
    log_ratio = torch.linspace(-3, 3, 64).view(4, 16)
    maxima = tuple(m.exp() for m in log_maxima(log_ratio, all_count(log_ratio)))
    whole = kept_of(log_ratio, all_count(log_ratio), HumanlineSampling(gamma_R=0.0, generator=seeded()))
    source = seeded()
    given = HumanlineSampling(gamma_R=0.0, maxima=maxima, generator=source)
    first = kept_of(log_ratio[:1], all_count(log_ratio[:1]), given)
    assert torch.equal(first, whole[:1])
    without = kept_of(log_ratio[:1], all_count(log_ratio[:1]), HumanlineSampling(gamma_R=0.0, generator=seeded()))
    assert not torch.equal(without, whole[:1])


# The distribution of the kept tokens


@pytest.mark.parametrize(("gamma_P", "gamma_R"), [(1.0, 0.0), (0.5, 0.01), (0.7, 0.3)])
def test_kept_tokens_of_the_reference_follow_a_geometric_mean_of_both_models(gamma_P, gamma_R):
    """``ref^(1 − g) · policy^g`` with g = gamma_P − gamma_R: at g = 1 the policy's own samples (rejection sampling)."""
    policy = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    reference = torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3], dtype=torch.float64)
    log_ratio = (policy / reference).log()
    drawn = torch.multinomial(reference, 200_000, replacement=True, generator=seeded())[None]
    sampling = HumanlineSampling(gamma_P=gamma_P, gamma_R=gamma_R, generator=seeded(1))
    kept = drawn[kept_of(log_ratio[drawn], all_count(drawn), sampling)]
    g = gamma_P - gamma_R
    expected = reference ** (1 - g) * policy**g
    for token, probability in enumerate((expected / expected.sum()).tolist()):
        assert_share(kept == token, probability)


# The limit of theorem 4.6

RATIOS = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0], dtype=torch.float64)
INSIDE = [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def nearly_certain(concentration: float, epsilon: float = 0.2, maximum: float = 2.0) -> HumanlineSampling:
    """Beta distributions of a small variance, with means so that the thresholds are 1 − ε and 1/(1 + ε)."""
    means = (1 - epsilon) / maximum, 1 / ((1 + epsilon) * maximum)
    gamma_P, gamma_R = (concentration * mean for mean in means)
    beta_P, beta_R = (concentration * (1 - mean) for mean in means)
    sources = {"maxima": (maximum, maximum), "generator": seeded()}
    return HumanlineSampling(gamma_P=gamma_P, beta_P=beta_P, gamma_R=gamma_R, beta_R=beta_R, **sources)


def test_as_the_variance_vanishes_a_token_is_kept_iff_its_ratio_is_within_epsilon__oracle_i():
    log_ratio = RATIOS.log().repeat(500, 1)
    shares = [
        kept_of(log_ratio, all_count(log_ratio), nearly_certain(c)).double().mean(0) for c in (1e1, 1e3, 1e5, 1e7)
    ]
    assert shares[-1].tolist() == INSIDE
    distances = [(share - shares[-1]).abs().sum() for share in shares[:-1]]
    assert distances == sorted(distances, reverse=True)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_gate_of_the_limit_is_that_of_the_clipped_term_and_not_of_ppo_s_minimum(advantage):
    logp = RATIOS.log()[None].requires_grad_()
    reference, ids, mask = TokenLogp(torch.zeros(1, 7).double()), torch.zeros(1, 7, dtype=torch.long), all_count(logp)

    def nonzero(objective: Tensor) -> list[float]:
        return (torch.autograd.grad(objective, logp, retain_graph=True)[0][0] != 0).double().tolist()

    out = token_log_ratio(TokenLogp(logp), reference, ids, mask, perception=nearly_certain(1e7))
    assert nonzero((advantage * out.log_ratio.exp()).sum()) == INSIDE
    ratio = logp.exp()
    clipped = advantage * ratio.clamp(0.8, 1.2)
    assert nonzero(clipped.sum()) == INSIDE
    ppo = nonzero(torch.minimum(advantage * ratio, clipped).sum())
    assert ppo == ([1, 1, 1, 1, 1, 0, 0] if advantage > 0 else [0, 0, 1, 1, 1, 1, 1])


# Losses


def test_a_rejected_token_keeps_its_value_and_loses_its_gradient(device):
    policy, reference, ids, mask = token_batch([[-9.0, -1.0]], [[-1.0, -1.0]], device=device)
    sampling = HumanlineSampling(gamma_P=50.0, gamma_R=0.0, maxima=(1.0, 1.0), generator=seeded())
    out = token_log_ratio(TokenLogp(policy), reference, ids, mask, perception=sampling)
    out.log_ratio.sum().backward()
    assert out.log_ratio.tolist() == [[-8.0, 0.0]]
    assert policy.grad.tolist() == [[0.0, 1.0]]
    assert [out.clamped_low_fraction, out.clamped_high_fraction, out.unclamped_fraction] == [0.5, 0.0, 0.5]


def test_a_token_that_is_unlikely_under_the_reference_is_rejected_on_the_other_side(device):
    policy, reference, ids, mask = token_batch([[-1.0, -1.0]], [[-9.0, -1.0]], device=device)
    sampling = HumanlineSampling(gamma_P=0.0, gamma_R=50.0, maxima=(1.0, 1.0), generator=seeded())
    out = token_log_ratio(TokenLogp(policy), reference, ids, mask, perception=sampling)
    assert [out.clamped_low_fraction, out.clamped_high_fraction] == [0.0, 0.5]


def sampled(objective, batch, impl, **settings):
    """Return the output of a loss with sampling, its gradient in the log-probs, and the tokens kept."""
    ids, mask = batch.target_ids, batch.loss_mask
    policy, reference = (token_logp(Logits(x), ids, mask) for x in (batch.logits, batch.ref_logits))
    leaf = policy.detach().requires_grad_()
    perception = HumanlineSampling(generator=seeded())
    out = loss_of(objective, TokenLogp(leaf), TokenLogp(reference), batch, impl=impl, perception=perception, **settings)
    (gradient,) = torch.autograd.grad(out.loss, leaf)
    kept = kept_of(leaf - reference, mask, replace(perception, generator=seeded()))
    return out, gradient, kept, (leaf, reference)


def test_the_loss_is_the_plain_one_and_its_gradient_that_of_the_kept_tokens(device, objective, impl):
    batch = random_batch(device)
    settings = {"beta": 0.0} if objective == "grpo" else {}
    out, gradient, kept, (leaf, reference) = sampled(objective, batch, impl, **settings)
    plain = loss_of(objective, TokenLogp(leaf), TokenLogp(reference), batch, impl=impl, clamp=None, **settings)
    (whole,) = torch.autograd.grad(plain.loss, leaf)
    assert torch.equal(out.loss, plain.loss)
    assert torch.equal(gradient, whole.where(kept, 0.0))
    assert 0 < kept.sum() < batch.loss_mask.sum()
    assert out.unclamped_fraction.item() == pytest.approx((kept.sum() / batch.loss_mask.sum()).item())


@pytest.mark.parametrize("divisor", [None, 40.0])
def test_the_kl_penalty_of_grpo_keeps_its_gradient_at_rejected_tokens(device, impl, divisor):
    batch = random_batch(device)
    settings = {"beta": 0.5, "num_items_in_batch": divisor}
    out, gradient, kept, (leaf, reference) = sampled("grpo", batch, impl, **settings)
    plain = loss_of("grpo", TokenLogp(leaf), TokenLogp(reference), batch, impl=impl, clamp=None, **settings)
    (whole,) = torch.autograd.grad(plain.loss, leaf)
    penalty = 0.5 * (1 - (reference - leaf).exp()).detach() / (divisor or batch.loss_mask.sum())
    torch.testing.assert_close(out.loss, plain.loss)
    torch.testing.assert_close(out.kl, plain.kl)
    torch.testing.assert_close(gradient, whole.where(kept, penalty.where(batch.loss_mask, 0.0)))


@pytest.mark.parametrize("kind", ["head", "logits"])
@pytest.mark.parametrize("frozen", [False, True])
def test_every_kind_of_scores_gives_the_gradients_of_log_probs(device, objective, kind, frozen):
    batch = head_batch(device)
    results = []
    for policy in (kind, "logp"):
        perception = HumanlineSampling(generator=seeded())
        results.append(answer(objective, batch, policy, policy, frozen=frozen, perception=perception))
    (values, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(values["loss"], expected["loss"])
    assert values["clamped_low_fraction"] == expected["clamped_low_fraction"] > 0
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, msg=name)


def test_packed_sequences_with_the_draws_of_padded_ones_have_their_loss(device, objective, impl):
    padded, packed, inside, bounds = padded_and_packed(device)
    sampling = HumanlineSampling(gamma_P=50.0, gamma_R=0.0, maxima=(1.0, 1.0))  # so steep that no draw matters
    losses, gradients = [], []
    for batch, more in ((padded, {}), (packed, {"cu_seqlens": bounds})):
        leaf = batch.logits.clone().requires_grad_()
        reference = Logits(batch.logits + 8 * torch.eye(batch.logits.shape[-1], device=device)[0])
        out = loss_of(objective, Logits(leaf), reference, batch, impl=impl, perception=sampling, **more)
        out.loss.backward()
        losses.append(out.loss)
        gradients.append(leaf.grad)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(gradients[1][0], gradients[0][inside])


def test_the_defaults_have_a_name(device):
    batch = random_batch(device)
    torch.manual_seed(0)
    named = loss_of("dpo", Logits(batch.logits), Logits(batch.ref_logits), batch, perception="sampling")
    torch.manual_seed(0)
    given = loss_of("dpo", Logits(batch.logits), Logits(batch.ref_logits), batch, perception=HumanlineSampling())
    assert named.unclamped_fraction == given.unclamped_fraction < 1


def test_a_log_prob_that_is_not_a_number_stays_visible_in_the_gradient(device):
    policy, reference, ids, mask = token_batch([[math.nan, -1.0]], [[-1.0, -1.0]], device=device)
    out = token_log_ratio(TokenLogp(policy), reference, ids, mask, perception="sampling")
    (out.log_ratio**2).sum().backward()
    assert policy.grad[0, 0].isnan()


def test_masked_tokens_are_neither_counted_nor_a_source_of_the_maxima(device):
    policy, reference, ids, mask = token_batch([[50.0, -1.0]], [[-1.0, -1.0]], [[0, 1]], device=device)
    out = token_log_ratio(TokenLogp(policy), reference, ids, mask, perception="sampling")
    assert out.unclamped_fraction == 1


# Errors


def test_a_clamp_beside_sampling_is_refused(objective):
    batch, clamp = random_batch(torch.device("cpu")), HumanlineClamp(-1.0, 1.5)
    with pytest.raises(ValueError, match=r"^clamp: expected none beside perception='sampling', which replaces it, got"):
        loss_of(objective, Logits(batch.logits), Logits(batch.ref_logits), batch, perception="sampling", clamp=clamp)


def test_no_clamp_may_be_said_beside_sampling(objective):
    batch = random_batch(torch.device("cpu"))
    losses = []
    for clamp in ({}, {"clamp": None}):
        sampling = HumanlineSampling(generator=torch.Generator().manual_seed(0))
        scores = Logits(batch.logits), Logits(batch.ref_logits)
        losses.append(loss_of(objective, *scores, batch, perception=sampling, **clamp).loss.item())
    assert losses[0] == losses[1]


def test_an_unknown_perception_is_refused():
    policy, reference, ids, mask = token_batch([[-1.0], [-1.0]], [[-1.0], [-1.0]])
    with pytest.raises(ValueError, match=r"^perception: expected 'clamp', 'sampling' or HumanlineSampling\(\.\.\.\)"):
        dpo_loss(TokenLogp(policy), reference, ids, mask, perception="sample")


def test_one_launch_with_sampling_is_refused():
    batch = random_batch(torch.device("cpu"))
    scores = Logits(batch.logits), Logits(batch.ref_logits), batch.target_ids, batch.loss_mask, batch.advantages
    with pytest.raises(ValueError, match=r"^one_launch: expected False with humanline sampling"):
        grpo_loss(*scores, one_launch=True, perception="sampling")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma_P": -0.1}, "gamma_P: expected a finite number >= 0, got -0.1"),
        ({"gamma_R": math.nan}, "gamma_R: expected a finite number >= 0, got nan"),
        ({"beta_P": 0.0}, "beta_P: expected a finite number > 0, got 0.0"),
        ({"beta_R": True}, "beta_R: expected a finite number > 0, got True"),
        ({"maxima": (2.0, 0.5)}, "maxima: expected M_R >= 1, got 0.5"),
        ({"maxima": (1.0,)}, r"maxima: expected M_P and M_R, got \(1.0,\)"),
    ],
)
def test_settings_outside_their_interval_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        HumanlineSampling(**settings)
