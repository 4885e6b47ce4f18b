"""The plan of the examples of each step."""

import pytest

from humanline_fused.training.data.plan import BatchPlan, BatchSizes, evaluation_plan


def make_plan(num_examples: int = 26, batch_size: int = 2, accumulation: int = 3, world_size: int = 2, seed: int = 0):
    return BatchPlan(num_examples, BatchSizes(batch_size, accumulation, world_size), seed)


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


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_counts_the_same_micro_batches_once_on_any_number_of_ranks(world_size: int):
    ranks = [evaluation_plan(10, 3, rank, world_size) for rank in range(world_size)]
    assert len({len(dealt) for dealt in ranks}) == 1
    counted = sorted(micro.ids for dealt in ranks for micro, counts in dealt if counts)
    assert counted == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9,)]


def test_a_last_evaluation_micro_batch_of_one_example_has_a_mismatched_pair():
    micro, _ = evaluation_plan(10, 3, 0, 1)[-1]
    assert (micro.ids, micro.following) == ((9,), (0,))
