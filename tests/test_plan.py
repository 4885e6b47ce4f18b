"""The plan of the examples of each step."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humanline_fused.training.data.plan import BatchPlan, BatchSizes, RoundPlan, StepPlan, Units, evaluation_plan


def make_plan(num_examples: int = 26, batch_size: int = 2, accumulation: int = 3, world_size: int = 2, seed: int = 0):
    return BatchPlan(num_examples, BatchSizes(batch_size, accumulation, world_size), seed)


def units_of(sizes: list[int]) -> Units:
    return Units(np.cumsum([0, *sizes[:-1]]), sum(sizes))


def epoch_of(plan: StepPlan, epoch: int = 0) -> list[int]:
    first = epoch * plan.steps_per_epoch
    return [i for step in range(first, first + plan.steps_per_epoch) for i in plan.examples(step)]


def test_an_epoch_takes_each_example_at_most_once_and_drops_only_a_partial_batch():
    plan = make_plan()
    taken = [i for step in range(plan.steps_per_epoch) for micro in plan.global_window(step) for i in micro]
    assert len(set(taken)) == len(taken) == 24


def test_a_step_does_not_depend_on_earlier_calls():
    forwards = [make_plan().global_window(step) for step in range(8)]
    plan = make_plan()
    assert [plan.global_window(step) for step in reversed(range(8))] == forwards[::-1]


def test_epochs_and_seeds_are_shuffled_differently():
    plan = make_plan(num_examples=24)
    first, second = ([plan.global_window(s) for s in steps] for steps in (range(2), range(2, 4)))
    assert first != second
    assert first != [make_plan(num_examples=24, seed=1).global_window(s) for s in range(2)]
    assert second != [make_plan(num_examples=24, seed=1).global_window(s) for s in range(2)]


def test_more_processes_with_less_accumulation_see_the_same_global_batch():
    layouts = [(12, 1), (6, 2), (2, 6), (1, 12)]
    plans = [make_plan(batch_size=1, accumulation=a, world_size=w) for a, w in layouts]
    batches = [[i for micro in plan.global_window(5) for i in micro] for plan in plans]
    assert all(batch == batches[0] for batch in batches)


def test_the_ranks_divide_each_global_micro_batch_without_overlap():
    plan = make_plan(num_examples=40, world_size=3)
    ranks = [plan.window(1, rank) for rank in range(3)]
    for number, micro in enumerate(plan.global_window(1)):
        assert micro == sum((window[number].ids for window in ranks), ())


def test_the_example_that_follows_the_last_of_a_rank_is_the_next_ranks_first():
    plan = make_plan()
    (first, second), (ids, *_) = (plan.window(0, rank)[0] for rank in (0, 1)), plan.global_window(0)
    assert first.following == (ids[1], ids[2])
    assert second.following == (ids[3], ids[0])


def test_a_dataset_smaller_than_a_global_batch_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"at least 12 examples.*2 per device x 3 acc.* x 2 proc.*got 11"):
        make_plan(num_examples=11)


# Units


def test_whole_units_are_permuted_and_then_cut():
    plan = BatchPlan(6, BatchSizes(2, accumulation=3), seed=9, units=units_of([2, 1, 3]))
    members = [[0, 1], [2], [3, 4, 5]]
    for epoch, order in enumerate([[2, 0, 1], [1, 2, 0]]):  # a resumed run counts on the orders of earlier versions
        assert np.random.default_rng([9, epoch]).permutation(3).tolist() == order
        assert list(plan.examples(epoch)) == [example for unit in order for example in members[unit]]


def test_units_of_one_example_are_in_the_order_without_units():
    alone = BatchPlan(20, BatchSizes(3), seed=5)
    assert epoch_of(alone) == epoch_of(BatchPlan(20, BatchSizes(3), seed=5, units=units_of([1] * 20)))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3))
def test_an_epoch_of_units_of_any_sizes_takes_each_example_once_and_each_unit_in_one_piece(
    sizes: list[int], batch_size: int, accumulation: int, epoch: int
):
    units, batches = units_of(sizes), BatchSizes(batch_size, accumulation)
    total = sum(sizes)
    if total < batches.global_batch:
        return
    taken = epoch_of(BatchPlan(total, batches, seed=3, units=units), epoch)
    assert len(set(taken)) == len(taken) == total - total % batches.global_batch
    unit_of = np.repeat(np.arange(len(sizes)), sizes)
    pieces = [(unit, list(members)) for unit, members in groupby(taken, key=lambda i: int(unit_of[i]))]
    assert len({unit for unit, _ in pieces}) == len(pieces)
    for unit, members in pieces[:-1]:
        assert members == np.flatnonzero(unit_of == unit).tolist()


def test_the_code_of_units_depends_on_every_start_and_on_the_end():
    codes = {units_of(sizes).code for sizes in ([2, 2], [1, 3], [2, 1, 1], [2, 3])}
    assert len(codes) == 4


# The order within a step


TOKENS = [5, 9, 2, 7, 7, 1, 8, 3]


def sorted_plan(sizes: BatchSizes) -> BatchPlan:
    return BatchPlan(8, sizes, seed=0, lengths=lambda ids: [TOKENS[i] for i in ids])


def test_a_sorted_step_begins_with_its_longest_examples():
    plan = sorted_plan(BatchSizes(2, accumulation=4))
    micro_batches = [[TOKENS[i] for i in micro] for micro in plan.global_window(0)]
    assert micro_batches == [[9, 8], [7, 7], [5, 3], [2, 1]]
    assert sum(2 * max(tokens) for tokens in micro_batches) == 46  # tokens with padding
    unsorted = BatchPlan(8, plan.sizes, seed=0).global_window(0)
    sevens = [[i for micro in window for i in micro if TOKENS[i] == 7] for window in (plan.global_window(0), unsorted)]
    assert sevens[0] == sevens[1]  # examples of one length keep their order
    assert sum(2 * max(TOKENS[i] for i in micro) for micro in unsorted) == 58


def test_the_ranks_of_a_sorted_micro_batch_have_similar_lengths():
    plan = sorted_plan(BatchSizes(1, accumulation=2, world_size=4))
    lengths = [[TOKENS[i] for micro in plan.window(0, rank) for i in micro.ids] for rank in range(4)]
    assert lengths == [[9, 5], [8, 3], [7, 2], [7, 1]]


@given(st.integers(0, 9), st.sampled_from([(4, 1, 1), (2, 2, 1), (1, 2, 2), (1, 4, 1)]))
def test_sorting_keeps_the_content_of_every_step(step: int, sizes: tuple[int, int, int]):
    given_sizes = BatchSizes(*sizes)
    taken = [i for micro in sorted_plan(given_sizes).global_window(step) for i in micro]
    assert sorted(taken) == sorted(BatchPlan(8, given_sizes, seed=0).examples(step))


# Rounds


def test_rounds_take_their_prompts_from_one_permutation_after_another():
    plan = RoundPlan(5, per_prompt=2, rollout_every=2, sizes=BatchSizes(1, accumulation=2, world_size=2), seed=9)
    order = [i for epoch in range(3) for i in np.random.default_rng([9, epoch]).permutation(5).tolist()]
    assert [i for number in range(3) for i in plan.prompts(number)] == order[:12]
    assert [list(plan.examples(step)) for step in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


def test_an_epoch_of_rounds_has_the_steps_of_its_prompts_and_at_least_one():
    plans = [RoundPlan(n, per_prompt=2, rollout_every=2, sizes=BatchSizes(8), seed=0) for n in (2, 4, 11)]
    assert [plan.steps_per_epoch for plan in plans] == [1, 1, 2]
    assert [len(plan) for plan in (make_plan(), make_plan(accumulation=1))] == [6, 6]


# Evaluation


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_counts_the_same_micro_batches_once_on_any_number_of_ranks(world_size: int):
    ranks = [evaluation_plan(10, 3, rank, world_size) for rank in range(world_size)]
    assert len({len(dealt) for dealt in ranks}) == 1
    counted = sorted(micro.ids for dealt in ranks for micro, counts in dealt if counts)
    assert counted == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9,)]


def test_a_last_evaluation_micro_batch_of_one_example_has_a_mismatched_pair():
    micro, _ = evaluation_plan(10, 3, 0, 1)[-1]
    assert (micro.ids, micro.following) == ((9,), (0,))
