"""Values, perceived probabilities and utility of prospect theory (docs/math.md, equations 18 to 22)."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from humanline_fused.perception.prospect import (
    GAMMA_GAINS,
    GAMMA_LOSSES,
    LOWEST_GAMMA,
    capacity,
    decision_weights,
    utility,
    utility_gap_bound,
    value,
)

EPSILON = torch.finfo(torch.float64).eps
CRITICAL_GAMMA = 0.27920424701493855
"""The root of γ^(1 − 2γ) = (1 − γ)^(2 − γ), rounded up."""


def normal_quantiles(n: int) -> Tensor:
    """Outcomes at the middle of n equal shares of a normal distribution, none of them 0 for an even n."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def uniform(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


def formula(a: float, gamma: float) -> float:
    """The capacity, also for a γ that is refused."""
    return a**gamma / (a**gamma + (1 - a) ** gamma) ** (1 / gamma)


# Value


def test_a_loss_counts_two_and_a_quarter_times_as_much_as_a_gain():
    assert value([-1.0, 0.0, 1.0]).tolist() == [-2.25, 0.0, 1.0]


def test_the_sensitivity_to_an_outcome_diminishes_with_its_size():
    assert value([-4.0, 4.0], alpha=0.5).tolist() == [-2.25 * 2, 2]


def test_gains_and_losses_are_counted_from_the_reference_point():
    assert value([2.0, 3.0], 3.0, alpha=1.0).tolist() == [-2.25, 0.0]


def test_every_example_can_have_its_own_reference_point():
    outcomes = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    assert value(outcomes, [1.0, 3.0], alpha=1.0).tolist() == [[0.0, 2.0], [-4.5, 0.0]]


# Capacity


@pytest.mark.parametrize("gamma", [LOWEST_GAMMA, GAMMA_GAINS, GAMMA_LOSSES, 1.0])
def test_certain_and_impossible_outcomes_are_perceived_exactly(gamma):
    assert capacity([0.0, 1.0], gamma).tolist() == [0.0, 1.0]


def test_with_a_gamma_of_1_the_perceived_probability_is_the_probability():
    a = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert (capacity(a, 1.0) - a).abs().max() <= 2 * EPSILON


@pytest.mark.parametrize(("gamma", "fixed_point"), [(0.61, 0.339), (0.65, 0.359), (0.69, 0.378)])
def test_smaller_probabilities_than_the_fixed_point_are_over_weighted__oracle_k(gamma, fixed_point):
    around = torch.tensor([fixed_point - 5e-4, fixed_point + 5e-4], dtype=torch.float64)
    below, above = capacity(around, gamma) - around
    assert below > 0 > above


def test_a_half_is_perceived_as_a_power_of_2():
    assert capacity(0.5, 0.61).item() == pytest.approx(2 ** (1 - 0.61 - 1 / 0.61), rel=4 * EPSILON)


def test_capacity_is_monotone_exactly_from_the_critical_gamma_on():
    def slope(gamma: float) -> float:
        """The sign of Ω' where it is smallest, at (1 − a) / a = (1 − γ) / γ²."""
        x = (1 - gamma) / gamma**2
        return gamma * x**gamma + x ** (gamma - 1) - (1 - gamma)

    assert slope(CRITICAL_GAMMA - 1e-9) < 0 < slope(CRITICAL_GAMMA + 1e-9)
    odds = (1 - CRITICAL_GAMMA) / CRITICAL_GAMMA**2
    a = 1 / (1 + odds)
    for gamma, rises in ((0.27, False), (LOWEST_GAMMA, True)):
        assert (formula(a + 1e-3, gamma) > formula(a - 1e-3, gamma)) is rises


@pytest.mark.parametrize("gamma", [LOWEST_GAMMA, 0.45, GAMMA_GAINS, GAMMA_LOSSES, 1.0])
def test_every_gamma_that_is_accepted_gives_a_monotone_capacity(gamma):
    perceived = capacity(torch.linspace(0, 1, 20_001, dtype=torch.float64), gamma)
    assert all(lower < higher for lower, higher in pairwise(perceived.tolist()))


# Decision weights


def test_a_chance_of_20_percent_to_win_is_perceived_as_26_percent():
    weights = decision_weights([0.0, 100.0], [0.8, 0.2])
    assert weights[1] == pytest.approx(formula(0.2, 0.61), rel=4 * EPSILON)
    assert weights.tolist() == pytest.approx([0.739, 0.261], abs=5e-4)


def test_a_loss_is_weighted_from_the_worst_outcome_up_with_its_own_gamma():
    weights = decision_weights([-3.0, -2.0, -1.0], [0.2, 0.3, 0.5])
    steps = [formula(total, 0.69) for total in (0.2, 0.5, 1.0)]
    assert weights.tolist() == pytest.approx([steps[0], steps[1] - steps[0], steps[2] - steps[1]], rel=1e-12)


def test_weights_follow_the_outcomes_in_any_order():
    outcomes, probabilities = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.25, 0.25, 0.5])
    shuffled = torch.tensor([2, 0, 1])
    weights = decision_weights(outcomes, probabilities)
    assert torch.equal(decision_weights(outcomes[shuffled], probabilities[shuffled]), weights[shuffled])


@pytest.mark.parametrize("sign", [1, -1])
def test_weights_of_gains_or_of_losses_alone_sum_to_1(sign):
    outcomes = sign * torch.arange(1.0, 11.0)
    assert decision_weights(outcomes, uniform(10)).sum().item() == pytest.approx(1, abs=10 * EPSILON)


def test_weights_of_mixed_outcomes_of_a_normal_distribution_sum_to_875():
    total = decision_weights(normal_quantiles(1000), uniform(1000)).sum().item()
    halves = [2 ** (1 - gamma - 1 / gamma) for gamma in (GAMMA_GAINS, GAMMA_LOSSES)]
    assert total == pytest.approx(sum(halves), abs=1000 * EPSILON)
    assert round(total, 3) == 0.875


def test_with_gammas_of_1_the_weights_are_the_probabilities():
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    weights = decision_weights([-1.0, 2.0, 0.0, -3.0], probabilities, gamma_gains=1.0, gamma_losses=1.0)
    assert (weights - probabilities).abs().max() <= 8 * EPSILON


def test_an_impossible_outcome_has_a_weight_of_exactly_0_at_either_end():
    third = 1 / 3  # three of them do not sum to exactly 1, where the capacity's slope is infinite
    for outcomes in ([1.0, 2.0, 3.0, 4.0, 5.0], [-5.0, -4.0, -3.0, -2.0, -1.0], [-2.0, -1.0, 0.0, 1.0, 2.0]):
        weights = decision_weights(outcomes, [0.0, third, third, third, 0.0])
        assert weights[[0, 4]].tolist() == [0.0, 0.0]


def test_a_certain_outcome_has_a_weight_of_exactly_1():
    assert decision_weights([3.0], [1.0]).tolist() == [1.0]
    assert decision_weights([-3.0, 0.0], [1.0, 0.0]).tolist() == [1.0, 0.0]


def test_equal_outcomes_share_the_weight_of_one():
    split = decision_weights([1.0, 2.0, 2.0], [0.5, 0.25, 0.25])
    assert split[1:].sum().item() == pytest.approx(decision_weights([1.0, 2.0], [0.5, 0.5])[1].item(), rel=1e-12)


def test_a_batch_with_a_gamma_for_each_example_gives_the_rows_of_single_calls():
    generator = torch.Generator().manual_seed(0)
    outcomes = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    probabilities = torch.randn(4, 6, generator=generator, dtype=torch.float64).softmax(-1)
    gains, losses, points = [0.3, 0.5, 0.61, 1.0], [0.9, 0.69, 0.4, 0.3], [0.0, 0.5, -0.5, 1.0]
    batch = decision_weights(outcomes, probabilities, points, gamma_gains=gains, gamma_losses=losses)
    for b in range(4):
        one = decision_weights(outcomes[b], probabilities[b], points[b], gamma_gains=gains[b], gamma_losses=losses[b])
        torch.testing.assert_close(batch[b], one, rtol=0, atol=8 * EPSILON)


def test_one_lottery_is_weighted_by_many_people():
    weights = decision_weights([1.0, 2.0], [0.9, 0.1], gamma_gains=torch.tensor([0.4, 0.6, 1.0]))
    assert weights.shape == (3, 2)
    assert weights[:, 1].tolist() == pytest.approx([formula(0.1, g) for g in (0.4, float(torch.tensor(0.6)), 1.0)])


def test_probabilities_of_a_float32_softmax_are_accepted():
    logits = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    assert decision_weights(logits, logits.softmax(0)).dtype == torch.float64


# Utility


def test_most_people_refuse_a_fair_bet():
    expected = formula(0.5, 0.61) - 2.25 * formula(0.5, 0.69)
    assert utility([-1.0, 1.0], [0.5, 0.5]).item() == pytest.approx(expected, rel=1e-12)
    assert expected < 0


def test_without_distortion_the_utility_is_the_expected_value():
    rational = {"gamma_gains": 1.0, "gamma_losses": 1.0, "alpha": 1.0, "loss_aversion": 1.0}
    assert utility([-4.0, 1.0, 3.0], [0.25, 0.25, 0.5], **rational).item() == pytest.approx(0.75, rel=1e-12)


def test_people_with_a_small_gamma_value_a_rare_gain_more():
    rare = utility([0.0, 100.0], [0.99, 0.01], gamma_gains=[0.4, 0.61, 1.0]).tolist()
    assert rare == sorted(rare, reverse=True)


def test_a_utility_counts_gains_and_losses_from_the_reference_point():
    outcomes, p, points = [-1.0, 0.5, 4.0], [0.25, 0.5, 0.25], [-2.0, 1.0, 5.0]
    moved = [[z - point for z in outcomes] for point in points]
    found = utility([outcomes] * 3, p, torch.tensor(points))
    assert torch.equal(found, utility(moved, p))  # the differences are exact


# The bound of proposition 3.4


def test_the_bound_is_the_one_of_the_formula_at_two_outcomes():
    bound = utility_gap_bound([1.0, 0.0], [0.5, 0.5], [1.0, -3.0])
    assert bound.item() == pytest.approx(3 * math.sqrt(2 * math.log(2)), rel=1e-12)


def distributions(n: int) -> st.SearchStrategy[Tensor]:
    numbers = st.lists(st.floats(1e-6, 1.0), min_size=n, max_size=n).map(lambda x: torch.tensor(x, dtype=torch.float64))
    return numbers.map(lambda x: x / x.sum())


@given(st.data())
def test_perceived_and_sampled_utility_differ_by_no_more_than_the_bound__oracle_j(data):
    n = data.draw(st.integers(1, 12))
    outcomes = torch.tensor(data.draw(st.lists(st.floats(-20, 20), min_size=n, max_size=n)), dtype=torch.float64)
    p, q = data.draw(distributions(n)), data.draw(distributions(n))
    gamma = data.draw(st.floats(LOWEST_GAMMA, 1))
    weights = decision_weights(outcomes, p, gamma_gains=gamma, gamma_losses=gamma)
    weights = weights / weights.sum()
    values = value(outcomes)
    gap = ((weights - q) * values).sum().abs()
    # Each of the n terms of KL rounds by an epsilon of the logarithm of at most 1e6 · 12.
    rounding = n * EPSILON * 20 * values.abs().max() ** 2
    assert gap**2 <= utility_gap_bound(weights, q, values) ** 2 + rounding


def test_the_step_of_pinsker_fails_for_weights_that_do_not_sum_to_1():
    probabilities = uniform(2)
    weights = decision_weights([-1.0, 1.0], probabilities)
    kl = (weights * (weights / probabilities).log()).sum()
    assert kl < 0 < (weights - probabilities).abs().sum()
    with pytest.raises(ValueError, match=r"weights: expected a sum of 1 over the last axis, got 0\.87"):
        utility_gap_bound(weights, probabilities, [1.0, 1.0])


def test_an_outcome_that_is_never_sampled_leaves_the_gap_unbounded():
    assert utility_gap_bound([0.5, 0.5], [1.0, 0.0], [1.0, 2.0]) == math.inf
    assert utility_gap_bound([1.0, 0.0], [1.0, 0.0], [1.0, 2.0]) == 0


def test_rounding_makes_neither_a_weight_nor_a_divergence_negative():
    first = torch.arange(1, 1000, dtype=torch.float64) / 1000
    p = torch.stack([first, torch.full_like(first, EPSILON), 1 - first - EPSILON], -1)
    for gamma in (0.5, GAMMA_LOSSES):
        assert decision_weights([-3.0, -2.0, -1.0], p, gamma_losses=gamma).min() == 0
    assert utility_gap_bound([0.5 - EPSILON / 2, 0.5], [0.5, 0.5], [1.0, 1.0]) == 0


# Errors


@pytest.mark.parametrize("gamma", [0.27, 0.0, -1.0, 1.01, math.nan])
def test_a_gamma_outside_its_interval_is_refused(gamma):
    for call, name in (
        (lambda: capacity(0.5, gamma), "gamma"),
        (lambda: decision_weights([1.0], [1.0], gamma_gains=gamma), "gamma_gains"),
        (lambda: utility([1.0], [1.0], gamma_losses=torch.tensor([0.5, gamma])), "gamma_losses"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: expected numbers in \[0\.28, 1\] .*, got {gamma:.2}"):
            call()


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([0.5, 0.4], r"expected a sum of 1 over the last axis, got 0\.9"),
        ([1.5, -0.5], r"expected numbers >= 0, got -0\.5"),
        ([0.5, math.nan], r"expected numbers >= 0, got nan"),
        ([1.0], r"expected one for each of n >= 1 outcomes, got \[1\] for \[2\]"),
        ([], r"expected one for each of n >= 1 outcomes, got \[0\] for \[2\]"),
    ],
)
def test_probabilities_that_are_no_distribution_are_refused(probabilities, message):
    with pytest.raises(ValueError, match=f"^probabilities: {message}"):
        utility([1.0, 2.0], probabilities)


def test_a_sum_is_1_up_to_the_rounding_of_the_numbers_given():
    numbers = torch.tensor([0.5, 0.5 + 2**-24])
    assert decision_weights([1.0, 2.0], numbers).sum() == 1
    with pytest.raises(ValueError, match=r"^probabilities: expected a sum of 1 over the last axis, got 1\.0000000596"):
        decision_weights([1.0, 2.0], numbers.tolist())


def test_a_row_of_a_batch_that_is_no_distribution_is_refused():
    with pytest.raises(ValueError, match=r"^probabilities: expected a sum of 1 over the last axis, got 0\.5"):
        decision_weights([1.0, 2.0], [[0.5, 0.5], [0.25, 0.25]])


def test_outcomes_without_an_entry_or_with_nan_are_refused():
    with pytest.raises(ValueError, match=r"^probabilities: expected one for each of n >= 1 outcomes, got \[0\]"):
        utility([], [])
    with pytest.raises(ValueError, match=r"^outcomes: expected numbers, got NaN"):
        utility([math.nan], [1.0])


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_a_capacity_of_a_number_that_is_no_probability_is_refused(probability):
    with pytest.raises(ValueError, match=rf"^probability: expected numbers in \[0, 1\], got {probability}"):
        capacity(probability, 0.61)


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"alpha": 1.5}, {"loss_aversion": 0.0}])
def test_a_value_function_with_another_shape_is_refused(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"^{name}: expected a "):
        value([1.0], **settings)
