"""One row of tokens for many sequences: every sequence is a path through it, and each common prefix is there once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from humanline_fused.model.prefix_tree import PrefixTree, Segment, prefix_tree

# Few different tokens, so that sequences have common prefixes, contain each other and repeat.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), max_size=8), min_size=1, max_size=7).filter(any)


def tree_of(*sequences: list[int]) -> PrefixTree:
    return prefix_tree([np.array(sequence, dtype=np.int64) for sequence in sequences])


def prefixes(sequences: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(sequence[:length]) for sequence in sequences for length in range(1, len(sequence) + 1)}


def indices(*segments: Segment) -> list[int]:
    return [index for segment in segments for index in range(segment.start, segment.stop)]


# By hand


def test_two_completions_stand_behind_one_prompt():
    tree = tree_of([7, 8, 9, 1, 2], [7, 8, 9, 3, 4, 5])
    assert tree.input_ids.tolist() == [[7, 8, 9, 1, 2, 3, 4, 5]]
    assert tree.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]
    assert [rows.tolist() for rows in tree.rows] == [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6, 7]]
    assert [(s.start, s.stop, s.position, s.context) for s in tree.segments] == [
        (0, 3, 0, ()),
        (3, 5, 3, (0,)),
        (5, 8, 3, (0,)),
    ]


def test_a_common_beginning_of_two_completions_is_a_segment_of_its_own():
    tree = tree_of([7, 7, 1, 5], [7, 7, 2], [7, 7, 1, 6])
    assert tree.input_ids.tolist() == [[7, 7, 1, 5, 6, 2]]
    assert [(s.start, s.context) for s in tree.segments] == [(0, ()), (2, (0,)), (3, (0, 1)), (4, (0, 1)), (5, (0,))]
    assert [rows.tolist() for rows in tree.rows] == [[0, 1, 2, 3], [0, 1, 5], [0, 1, 2, 4]]


def test_a_sequence_that_begins_another_and_equal_sequences_add_no_token():
    tree = tree_of([1, 2], [1, 2, 3], [1, 2], [], [1, 2, 3])
    assert tree.input_ids.tolist() == [[1, 2, 3]]
    assert [rows.tolist() for rows in tree.rows] == [[0, 1], [0, 1, 2], [0, 1], [], [0, 1, 2]]


def test_prompts_follow_each_other_in_the_order_of_the_sequences():
    tree = tree_of([9, 9, 1], [2, 2, 1], [9, 9, 0], [2, 2, 0])
    assert tree.input_ids.tolist() == [[9, 9, 1, 0, 2, 2, 1, 0]]


def test_turns_of_a_conversation_are_computed_once():
    turns = [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7]
    tree = tree_of(*turns)
    assert tree.input_ids.tolist() == [list(turns[-1])]
    assert [(s.start, s.stop) for s in tree.segments] == [(0, 7)]
    assert [len(rows) for rows in tree.rows] == [3, 5, 7]


def test_a_tree_accepts_tensors_and_any_integer_dtype():
    tree = prefix_tree([torch.tensor([1, 2]), np.array([1, 3], dtype=np.int32)])
    assert tree.input_ids.tolist() == [[1, 2, 3]]
    assert {t.dtype for t in (tree.input_ids, tree.position_ids, *tree.rows)} == {torch.int64}


# Properties


@settings(max_examples=100, deadline=None)
@given(SEQUENCES)
def test_every_sequence_can_be_read_from_the_row(sequences: list[list[int]]):
    tree = tree_of(*sequences)
    assert [tree.input_ids[0, rows].tolist() for rows in tree.rows] == sequences
    assert [tree.position_ids[0, rows].tolist() for rows in tree.rows] == [list(range(len(s))) for s in sequences]


@settings(max_examples=100, deadline=None)
@given(SEQUENCES)
def test_each_token_of_a_common_prefix_stands_in_the_row_once(sequences: list[list[int]]):
    assert tree_of(*sequences).input_ids.numel() == len(prefixes(sequences))


@settings(max_examples=100, deadline=None)
@given(SEQUENCES)
def test_a_token_attends_to_exactly_the_tokens_before_it(sequences: list[list[int]]):
    tree = tree_of(*sequences)
    seen = {}
    for segment in tree.segments:
        before = indices(*(tree.segments[number] for number in segment.context))
        assert segment.position == len(before)
        for row in range(segment.start, segment.stop):
            seen[row] = [*before, *range(segment.start, row + 1)]
    for rows in tree.rows:
        assert all(seen[row] == rows[: i + 1].tolist() for i, row in enumerate(rows.tolist()))


@settings(max_examples=100, deadline=None)
@given(SEQUENCES)
def test_segments_fill_the_row_and_their_contexts_are_earlier(sequences: list[list[int]]):
    tree = tree_of(*sequences)
    assert indices(*tree.segments) == list(range(tree.input_ids.shape[1]))
    for number, segment in enumerate(tree.segments):
        assert segment.start < segment.stop
        assert list(segment.context) == sorted(segment.context)
        assert all(earlier < number for earlier in segment.context)


@settings(max_examples=100, deadline=None)
@given(SEQUENCES)
def test_a_segment_begins_only_where_sequences_part(sequences: list[list[int]]):
    branches: dict[tuple[int, ...], set[int]] = {}
    for prefix in prefixes(sequences):
        branches.setdefault(prefix[:-1], set()).add(prefix[-1])
    parted = sum(len(tokens) for prefix, tokens in branches.items() if len(tokens) > 1 or not prefix)
    assert len(tree_of(*sequences).segments) == parted


# Bad input


def test_sequences_without_a_token_are_an_error():
    with pytest.raises(ValueError, match=r"expected at least one token, got 2 empty sequences"):
        tree_of([], [])
    with pytest.raises(ValueError, match=r"expected at least one token, got 0 empty sequences"):
        prefix_tree([])


def test_sequences_with_two_axes_are_an_error():
    with pytest.raises(ValueError, match=r"expected sequences of one axis, got the shapes \[\(1, 2\)\]"):
        prefix_tree([np.zeros((1, 2), dtype=np.int64)])
