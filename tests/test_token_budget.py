"""Cutting a micro-batch into forward passes of at most so many tokens."""

import warnings
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.plan import MicroBatch
from humanline_fused.training.data.token_budget import TokenBudget, Unit, fill
from humanline_fused.training.objectives import find_objective


def ids(number: int, first: int = 0) -> torch.Tensor:
    return torch.arange(first, first + number, dtype=torch.int32)


def example(prompt: int, *completions: int, first: int = 0) -> Example:
    """Return an example of these lengths; ``first`` makes another prompt."""
    return Example(ids(prompt, first), tuple(map(ids, completions)))


def budget(most: int | None, objective: str = "dpo", *, once: bool = False, max_length: int = 100) -> TokenBudget:
    return TokenBudget(most, find_objective(objective), max_length, once=once)


def whole(examples: list[Example]) -> MicroBatch:
    numbers = tuple(range(len(examples)))
    return MicroBatch(numbers, numbers[1:] + numbers[:1])


def parts(given_budget: TokenBudget, examples: list[Example], at_least: int = 1) -> list[list[int]]:
    return [list(part.ids) for part in given_budget.cut(examples, whole(examples), at_least)]


PAIRS = [example(2, 3, 1), example(1, 2, 2), example(4, 4, 2), example(1, 1, 1)]
"""As padded rows 2 x 5, 2 x 3, 2 x 8 and 2 x 2 tokens; once 2+2+0, 1+1+1, 4+3+1 and 1+0+0, without last tokens."""


def test_padded_pairs_fill_forward_passes_in_order():
    assert parts(budget(None), PAIRS) == [[0, 1, 2, 3]]
    assert parts(budget(64), PAIRS) == [[0, 1, 2, 3]]  # 8 sequences of 8 tokens
    assert parts(budget(63), PAIRS) == [[0, 1], [2, 3]]  # 20 and 32 tokens
    assert parts(budget(32), PAIRS) == [[0, 1], [2, 3]]
    assert parts(budget(31), PAIRS) == [[0, 1], [2], [3]]


def test_pairs_whose_prompt_is_computed_once_fill_them_with_more():
    assert parts(budget(16, once=True), PAIRS) == [[0, 1, 2, 3]]
    assert parts(budget(15, once=True), PAIRS) == [[0, 1], [2, 3]]  # 7 and 9 tokens
    empty = [example(3, 0, 0), example(3, 0, 0, first=3)]
    assert parts(budget(6, once=True), empty) == [[0, 1]]
    assert parts(budget(5, once=True), empty) == [[0], [1]]


def test_the_completions_of_a_prompt_stay_together_where_it_is_computed_once():
    group = [example(5, n) for n in (2, 3, 4)]
    groups = [*group, *(example(6, n, first=7) for n in (1, 1))]
    assert parts(budget(12, "grpo", once=True), groups) == [[0, 1, 2], [3, 4]]  # 5+1+2+3 and 6
    assert parts(budget(20, "grpo"), groups) == [[0, 1], [2], [3, 4]]  # 2 x 8, 9 and 2 x 7 padded


def test_mismatched_completions_count():
    labelled = [example(2, 1), example(2, 6)]
    assert parts(budget(16, "kto"), labelled) == [[0, 1]]
    assert parts(budget(15, "kto"), labelled) == [[0], [1]]
    crossed = [example(8, 1), example(1, 8)]  # the longest is the first prompt with the second completion
    assert parts(budget(31, "kto"), crossed) == [[0], [1]]
    assert parts(budget(32, "kto"), crossed) == [[0, 1]]


def test_sequences_are_counted_as_they_are_cut():
    assert parts(budget(8, max_length=2), PAIRS[:2]) == [[0, 1]]


def test_parts_keep_the_mismatched_pairs_of_the_micro_batch():
    labelled = [example(1, 1)] * 3
    assert budget(2, "kto").cut(labelled, whole(labelled)) == [
        MicroBatch((0,), (1,)),
        MicroBatch((1,), (2,)),
        MicroBatch((2,), (0,)),
    ]


def test_a_unit_larger_than_the_budget_is_a_pass_of_its_own_and_that_is_said_once():
    cut = budget(10)
    with pytest.warns(UserWarning, match=r"max_tokens_per_micro_batch=10: the sequences of one example have 16 tokens"):
        assert parts(cut, PAIRS) == [[0], [1], [2], [3]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts(cut, PAIRS)
        assert parts(budget(16), PAIRS) == [[0], [1], [2], [3]]  # none is larger


def test_more_parts_can_be_asked_for_than_the_budget_needs():
    assert parts(budget(1000), PAIRS, at_least=3) == [[0], [1], [2, 3]]
    assert parts(budget(31), PAIRS, at_least=2) == [[0, 1], [2], [3]]
    group = [example(5, 1)] * 3
    assert parts(budget(1000, "grpo", once=True), group, at_least=2) == [[0, 1], [2]]
    assert parts(budget(1000), PAIRS[:2], at_least=3) == [[0], [1]]


def test_every_rank_has_as_many_parts_as_the_one_with_the_most():
    examples = [example(2, 3, 1)] * 5
    micros = [MicroBatch((0, 1), (1, 2)), MicroBatch((2, 3, 4), (3, 4, 0))]
    alike = {most: [budget(most).cut_alike(examples, micros, rank) for rank in range(2)] for most in (10, 20)}
    ids = {most: [[part.ids for part in rank_parts] for rank_parts in ranks] for most, ranks in alike.items()}
    assert ids == {10: [[(0,), (1,), (1,)], [(2,), (3,), (4,)]], 20: [[(0,), (1,)], [(2, 3), (4,)]]}


UNITS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 30)), min_size=1, max_size=20)


@given(UNITS, st.integers(1, 150), st.booleans())
def test_the_fewest_parts_in_order_each_within_the_budget_or_one_unit(
    sizes: list[tuple[int, int]], most: int, padded: bool
):
    units = [Unit(1, number, longest=tokens, tokens=number * tokens) for number, tokens in sizes]

    def cost(unit: Unit) -> int:
        return unit.padded if padded else unit.tokens

    filled = fill(units, most, cost)
    assert sum(unit.examples for unit in filled) == len(units)
    assert all(cost(unit) <= most or unit.examples == 1 for unit in filled)
    bounds = [0, *accumulate(unit.examples for unit in filled)]
    for unit, (first, stop) in zip(filled, pairwise(bounds), strict=True):
        assert unit.sequences == sum(one.sequences for one in units[first:stop])

    def greedy(limit: int) -> int:
        """Taking as many as fit gives the fewest parts."""
        number, current = 1, units[0]
        for unit in units[1:]:
            longer = current.joined(unit)
            number, current = (number, longer) if cost(longer) <= limit else (number + 1, unit)
        return number

    assert len(filled) == greedy(most)
    largest = max(map(cost, filled))
    assert largest <= max(map(cost, units)) or greedy(largest - 1) > len(filled)
