"""Diagnostics of scored data, on constructed data with a known answer.

A Monte-Carlo test allows 5 standard errors, computed from its own sample unless stated.
"""

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from humanline_fused.perception.diagnostics import (
    clamp_share,
    data_drift,
    effective_sample_size,
    mean_entropy,
    mean_ratio,
    pareto_k,
    policy_left,
    quartiles,
    reference_left,
    sequence_means,
    surplus_surprisal,
    tail_mass,
)
from humanline_fused.types import HumanlineClamp

POLICY = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
OTHER = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SAMPLES = 100_000


def entropy(p: Tensor) -> float:
    return -(p * p.log()).sum().item()


def kl(q: Tensor, p: Tensor) -> float:
    return (q * (q / p).log()).sum().item()


def drawn(p: Tensor, seed: int = 0) -> Tensor:
    return torch.multinomial(p, SAMPLES, replacement=True, generator=torch.Generator().manual_seed(seed))


def errors(values: Tensor, number: float = 5) -> float:
    """Return ``number`` standard errors of the mean."""
    return number * values.std().item() / math.sqrt(values.numel())


# Surplus surprisal, entropy, mean ratio, drift


def test_surplus_surprisal_is_0_on_the_reference_s_own_samples():
    logp = POLICY.log()[drawn(POLICY)]
    surplus = surplus_surprisal(logp, torch.full_like(logp, entropy(POLICY)))
    assert abs(surplus.item()) < errors(logp)


def test_surplus_surprisal_is_kl_plus_the_entropy_difference_on_other_samples():
    logp = POLICY.log()[drawn(OTHER)]
    surplus = surplus_surprisal(logp, torch.full_like(logp, entropy(POLICY)))
    expected = kl(OTHER, POLICY) + entropy(OTHER) - entropy(POLICY)
    assert abs(surplus.item() - expected) < errors(logp)


def test_surplus_surprisal_of_greedy_samples_is_below_0():
    logp = POLICY.log().max().expand(4)
    surplus = surplus_surprisal(logp, torch.full_like(logp, entropy(POLICY)))
    assert surplus.item() == pytest.approx(-math.log(0.5) - entropy(POLICY))
    assert surplus < 0


def test_masked_tokens_do_not_count():
    counts = torch.tensor([[True, False], [True, True]])
    values = torch.tensor([[1.0, math.nan], [2.0, 6.0]])
    zero = torch.zeros(2, 2)
    assert mean_entropy(values, counts).item() == 3
    assert surplus_surprisal(-values, zero, counts).item() == 3
    assert data_drift(-values, zero, counts).item() == 3
    assert mean_ratio(values.log(), counts).item() == pytest.approx(3)
    assert sequence_means(values, counts).tolist() == [1, 4]


def test_the_mean_ratio_is_1_where_the_reference_wrote_the_data_whatever_the_policy():
    ratio = (POLICY / OTHER)[drawn(OTHER)]
    assert abs(mean_ratio(ratio.log()).item() - 1) < errors(ratio)


def test_the_mean_ratio_on_other_data_is_a_sum_by_hand():
    ratio = (POLICY / OTHER)[drawn(POLICY)]
    expected = 0.2 * 0.4 + 0.3 * 1.0 + 0.5 * 2.5
    assert abs(mean_ratio(ratio.log()).item() - expected) < errors(ratio)


def test_data_that_became_less_likely_have_a_drift_above_0():
    assert data_drift(torch.tensor([-2.0, -1.0]), torch.tensor([-1.5, -0.5])).item() == 0.5


def test_sequences_without_a_token_that_counts_are_left_out():
    counts = torch.tensor([[False, False], [True, True]])
    assert sequence_means(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), counts).tolist() == [4]


def test_quartiles_are_interpolated():
    assert quartiles(torch.tensor([4.0, 1.0, 2.0, 3.0])).tolist() == [1.75, 2.5, 3.25]
    assert quartiles(torch.arange(101.0)).tolist() == [25, 50, 75]


# A reference that leaves the data


def test_a_rise_of_the_surplus_above_a_tenth_of_a_nat_has_left_the_data():
    flat = [0.02] * 5
    assert reference_left([*flat, *[0.13] * 5])
    assert not reference_left([*flat, *[0.11] * 5])
    assert not reference_left([*flat, *[-0.5] * 5])


def test_what_counts_is_the_rise_of_the_surplus_not_its_level():
    assert not reference_left([0.8] * 40)
    assert reference_left([0.8 + 0.01 * step for step in range(40)])


def test_fewer_than_ten_lines_are_not_judged():
    steep = [float(step) for step in range(10)]
    assert not reference_left(steep[:9])
    assert reference_left(steep)
    assert not policy_left(steep[:9], syncs=9)
    assert policy_left(steep, syncs=10)


def ever_left(surplus: list[float]) -> bool:
    return any(reference_left(surplus[:lines]) for lines in range(10, len(surplus) + 1))


def test_noise_is_rarely_a_rise_even_if_it_is_ten_times_the_threshold():
    """Four standard errors from a robust estimate: at most one run in ten; with the noise of a usual run none."""
    noise = torch.randn(100, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    assert sum(map(ever_left, noise.tolist())) <= 10
    assert not any(map(ever_left, (0.03 * noise).tolist()))
    assert ever_left((noise[0] + torch.arange(60)).tolist())


def test_a_rise_must_exceed_four_standard_errors_of_the_difference_of_two_means():
    """Second differences of ±.4: a standard deviation of .242, which leaves 4 errors of the difference at .612."""
    noise = [0.1 * (-1) ** line for line in range(21)]
    assert not reference_left([*noise[:10], *(0.61 + value for value in noise[10:])])
    assert reference_left([*noise[:10], *(0.62 + value for value in noise[10:])])


def test_a_policy_has_left_the_data_at_the_first_line_above_a_tenth_of_a_nat():
    steady = [0.005 * step for step in range(20)]
    assert not policy_left(steady, syncs=20)
    assert policy_left([*steady, 0.101], syncs=20)


def test_a_drift_must_exceed_four_standard_errors_of_the_differences_it_adds_up():
    """Second differences of ±.4: a variance of .08 for each difference, of which 6 leave 4 errors at 2.77."""
    drift = [0.1 * step + 0.1 * (-1) ** step for step in range(30)]
    assert drift[-1] == pytest.approx(2.8)
    assert policy_left(drift, syncs=5)
    assert not policy_left(drift, syncs=6)


def test_syncs_between_two_log_lines_add_no_noise():
    """One difference for each of 30 lines and one since: 4 errors at 6.30."""
    noise = [0.1 * (-1) ** step for step in range(30)]
    assert policy_left([0.221 * step + noise[step] for step in range(30)], syncs=1000)
    assert not policy_left([0.220 * step + noise[step] for step in range(30)], syncs=1000)


def added_up(noise: list[float], k: int) -> list[float]:
    """Return the drift of a policy that loses nothing but is measured with noise."""
    drifts, at_sync = [], 0.0
    for step, difference in enumerate(noise):
        drifts.append(at_sync + difference)
        if step % k == 0:
            at_sync = drifts[-1]
    return drifts


@pytest.mark.parametrize("k", [1, 4, 16, 50])
def test_noise_that_syncs_add_up_is_rarely_a_drift(k: int):
    """At most one run in ten, whose noise is ten times the threshold."""
    noise = torch.randn(100, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).tolist()
    runs = [added_up(differences, k) for differences in noise]
    assert sum(any(policy_left(drift[:n], n // k) for n in range(10, 101)) for drift in runs) <= 10


# Effective sample size


def test_equal_weights_leave_the_whole_sample_and_one_weight_a_single_example():
    assert effective_sample_size(torch.full((7,), -3.0)).item() == pytest.approx(1)
    assert effective_sample_size(torch.tensor([0.0, *[-math.inf] * 9])).item() == pytest.approx(0.1)


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0])
def test_lognormal_weights_leave_exp_of_minus_the_variance(scale: float):
    logs = scale * torch.randn(20, SAMPLES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shares = torch.stack([effective_sample_size(row) for row in logs])
    assert abs(shares.mean().item() - math.exp(-(scale**2))) < errors(shares)


def test_weights_far_beyond_the_range_of_floats_do_not_overflow():
    assert effective_sample_size(torch.tensor([2000.0, 2000.0, -2000.0])).item() == pytest.approx(2 / 3)


# Pareto k


@pytest.mark.parametrize("shape", [0.1, 0.5, 0.7, 1.0, 2.0])
def test_pareto_k_finds_the_shape_of_a_power_law(shape: float):
    u = torch.rand(30, SAMPLES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = torch.tensor([pareto_k(row) for row in -shape * u.log()])
    in_tail = math.ceil(3 * math.sqrt(SAMPLES))
    with_prior = (in_tail * shape + 5) / (in_tail + 10)
    assert abs(found.mean().item() - with_prior) < errors(found)


def test_weights_of_a_bounded_tail_have_k_below_0():
    weights = 2 + torch.rand(SAMPLES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert pareto_k(weights.log()) < 0


def test_a_constant_added_to_all_weights_does_not_change_k():
    logs = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert pareto_k(logs + 900) == pytest.approx(pareto_k(logs), abs=1e-9)


@pytest.mark.parametrize(("number", "in_tail"), [(50, 10), (1000, 95)])
def test_the_tail_is_the_largest_fifth_or_3_roots_of_the_number(number: int, in_tail: int):
    """It begins above the weight before it, and no smaller one matters."""
    logs = torch.randn(number, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).sort().values
    smaller = torch.arange(number) < number - in_tail
    smallest = torch.arange(number) < number - in_tail - 1
    assert pareto_k(logs - smallest.double()) == pareto_k(logs)
    assert pareto_k(logs - smaller.double()) != pareto_k(logs)


@pytest.mark.parametrize("number", [25, 200, 1000])
def test_the_fit_of_the_tail_is_zhang_and_stephens_with_the_grid_and_prior_of_psis(number: int):
    """In plain numbers: 30 + ⌊√n⌋ points, the lower quartile's place ⌊n/4 + ½⌋, and ten values of ½ as a prior."""
    logs = torch.randn(number, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).sort().values
    n = math.ceil(min(number / 5, 3 * math.sqrt(number)))
    x = (logs[-n:].exp() - logs[-n - 1].exp()).tolist()

    def shape(b: float) -> float:
        return sum(math.log1p(-b * value) for value in x) / n

    m = 30 + int(math.sqrt(n))
    grid = [1 / x[-1] + (1 - math.sqrt(m / (j - 0.5))) / (3 * x[int(n / 4 + 0.5) - 1]) for j in range(1, m + 1)]
    likelihoods = [n * (math.log(-b / shape(b)) - shape(b) - 1) for b in grid]
    weights = [1 / sum(math.exp(other - mine) for other in likelihoods) for mine in likelihoods]
    k = shape(sum(b * weight for b, weight in zip(grid, weights, strict=True)))
    rounding = (16 + n) * torch.finfo(torch.float64).eps  # of k, and of a sum of n terms
    assert pareto_k(logs) == pytest.approx((n * k + 5) / (n + 10), rel=rounding)


def test_equal_weights_have_no_tail():
    assert pareto_k(torch.zeros(100)) == -math.inf


def test_k_of_weights_hundreds_of_nats_apart_is_finite_and_large():
    logs = 800 * torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert 1 < pareto_k(logs) < math.inf


# Clamp share and tail mass


def test_tokens_on_a_bound_are_inside():
    assert clamp_share(torch.tensor([-1.5, 1.5, 0.0])).item() == 0
    assert clamp_share(torch.tensor([-1.0, 1.0, 0.2]), clamp=HumanlineClamp(-0.1, 0.2)).item() == pytest.approx(2 / 3)
    assert tail_mass(torch.tensor([-9.0, 9.0]), clamp=HumanlineClamp(-math.inf, math.inf)).item() == 0


def test_shares_of_normal_log_ratios_are_normal_tails():
    """Log-ratios N(−s²/2, s²) under the source are N(+s²/2, s²) under the reference."""
    scale = 1.2
    noise = torch.randn(20, SAMPLES, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    log_ratio = scale * noise - scale**2 / 2
    for measured, middle in ((clamp_share, -(scale**2) / 2), (tail_mass, scale**2 / 2)):
        normal = NormalDist(middle, scale)
        shares = torch.stack([measured(row) for row in log_ratio])
        assert abs(shares.mean().item() - (normal.cdf(-1.5) + 1 - normal.cdf(1.5))) < errors(shares)


def test_the_tail_mass_is_the_reference_s_probability_of_these_tokens():
    log_ratio = (POLICY / OTHER).log()[drawn(OTHER)]
    outside = (log_ratio < -0.5).double() * log_ratio.exp()
    narrow = HumanlineClamp(-0.5, 1.0)
    assert abs(tail_mass(log_ratio, clamp=narrow).item() - 0.2) < errors(outside - 0.2 * log_ratio.exp())
    assert abs(clamp_share(log_ratio, clamp=narrow).item() - 0.5) < errors((log_ratio < -0.5).double())


# Errors


def test_no_token_that_counts_is_an_error_with_the_number():
    nothing = torch.zeros(2, 3)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="surplus surprisal: tokens that count: expected at least 1, got 0"):
        surplus_surprisal(nothing, nothing, mask)
    with pytest.raises(ValueError, match="sequences: expected at least 1, got 0"):
        sequence_means(nothing, mask)
    with pytest.raises(ValueError, match="weights: expected at least 1, got 0"):
        effective_sample_size(torch.zeros(0))
    with pytest.raises(ValueError, match="values: expected at least 1, got 0"):
        quartiles(torch.zeros(0))


def test_a_tail_needs_25_weights():
    with pytest.raises(ValueError, match="weights: expected at least 25, got 24"):
        pareto_k(torch.randn(24))


def test_a_mask_of_another_shape_or_type_is_an_error():
    with pytest.raises(ValueError, match=r"mean ratio: expected a bool mask \[2\], got torch.bool \[3\]"):
        mean_ratio(torch.zeros(2), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected a bool mask \[2\], got torch.int64 \[2\]"):
        mean_ratio(torch.zeros(2), torch.ones(2, dtype=torch.int64))
