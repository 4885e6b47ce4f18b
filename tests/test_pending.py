"""Look-ahead scores of coming steps are stored by example, so that another number of processes can resume."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from humanline_fused.training.data.batch import Batch, collate, sequences
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.plan import BatchPlan, BatchSizes
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.pending import ByExample, by_example, in_batches, merged, of_padded
from tests.tiny_model import records, tiny_tokenizer

MAX_LENGTH = 9


def scored(examples: Sequence[Example], plan: BatchPlan, rank: int, objective: str) -> list[dict[str, torch.Tensor]]:
    """Return a score for every token of step 1 that depends on all tokens before it."""
    step = []
    for micro in plan.window(1, rank):
        batch = collate(examples, micro, find_objective(objective), pad_token_id=0, max_length=MAX_LENGTH)
        scores = {
            f"{prefix}ref_logp": part.input_ids.cumsum(-1).flatten()[part.source][None].float()
            for prefix, part in batch.passes.items()
        }
        step.append(scores | {"ref_entropy": scores["ref_logp"] / 2})
    return step


def padded(scores: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return packed scores at the rows of the model's output, [B, T], 0 elsewhere: the form of earlier versions."""
    grid = torch.zeros(batch.input_ids.numel()).index_copy_(0, batch.source, scores[0])
    return grid.view(batch.input_ids.shape)


LAYOUTS = [BatchSizes(*sizes) for sizes in ((4, 1, 1), (2, 1, 2), (1, 1, 4), (2, 2, 1), (1, 2, 2))]
"""Batch size, accumulation, ranks: a global batch of 4."""


def moves(objective: str) -> Iterator[tuple[BatchPlan, BatchPlan]]:
    """Yield all pairs of different layouts; for KTO only those with equal global micro-batches, which fix its pairs."""
    for pair in itertools.permutations(LAYOUTS, 2):
        before, after = (BatchPlan(8, sizes, seed=3) for sizes in pair)
        if objective != "kto" or before.sizes.micro_batch == after.sizes.micro_batch:
            yield before, after


MOVES = [(objective, *plans) for objective in ("dpo", "kto", "grpo") for plans in moves(objective)]


def examples_of(objective: str) -> Sequence[Example]:
    return prepare(records(objective, 8), tiny_tokenizer(), find_objective(objective), max_length=MAX_LENGTH).examples


@pytest.mark.parametrize(("objective", "before", "after"), MOVES)
def test_scores_split_on_some_ranks_are_joined_on_others(objective: str, before: BatchPlan, after: BatchPlan):
    examples, kind = examples_of(objective), find_objective(objective)
    parts = [
        {1: by_example(scored(examples, before, rank, objective), before.window(1, rank), examples, kind, MAX_LENGTH)}
        for rank in range(before.sizes.world_size)
    ]
    (step,) = merged(parts).values()
    for rank in range(after.sizes.world_size):
        together = in_batches(step, after.window(1, rank), examples, kind, MAX_LENGTH)
        assert same(together, scored(examples, after, rank, objective))


def test_an_example_without_scores_is_an_error():
    window = BatchPlan(4, BatchSizes(2), seed=0).window(0, 0)
    with pytest.raises(KeyError):
        in_batches({}, window, examples_of("dpo"), find_objective("dpo"), MAX_LENGTH)


def test_scores_of_other_tokens_are_refused():
    examples, kind, window = examples_of("kto"), find_objective("kto"), BatchPlan(4, BatchSizes(4), seed=0).window(0, 0)
    names = ("ref_logp", "kl_ref_logp")
    taken = {i: {name: [torch.zeros(30)] for name in names} for i in range(4)}
    with pytest.raises(ValueError, match=r"expected scores of \d tokens, got 30: they belong to other data"):
        in_batches(taken, window, examples, kind, MAX_LENGTH)


# Files of earlier versions


def test_scores_stored_for_every_token_of_a_sequence_are_read(objective: str):
    examples, kind, plan = examples_of(objective), find_objective(objective), BatchPlan(8, BatchSizes(4), seed=3)
    window, expected = plan.window(1, 0), scored(examples, plan, 0, objective)
    sizes: dict[str, Any] = {"pad_token_id": 0, "max_length": MAX_LENGTH}
    batches = [collate(examples, micro, kind, **sizes) for micro in window]
    rows = [
        {name: padded(values, batch.passes["kl_" if name.startswith("kl_") else ""]) for name, values in scores.items()}
        for scores, batch in zip(expected, batches, strict=True)
    ]
    assert same(
        in_batches(of_padded(rows, window, examples, kind, MAX_LENGTH), window, examples, kind, MAX_LENGTH), expected
    )
    by_token: ByExample = {}
    for scores, micro in zip(rows, window, strict=True):
        for prefix, given in sequences(examples, micro, kind):
            for name in ("kl_ref_logp",) if prefix else ("ref_logp", "ref_entropy"):
                for row, (parts, values) in enumerate(zip(given, scores[name], strict=True)):
                    whole = values[: len(parts.token_ids(MAX_LENGTH))]
                    by_token.setdefault(micro.ids[row % len(micro.ids)], {}).setdefault(name, []).append(whole)
    assert same(in_batches(by_token, window, examples, kind, MAX_LENGTH), expected)


def same(mine: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    pairs = list(zip(mine, other, strict=True))
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b) for a, b in pairs)
