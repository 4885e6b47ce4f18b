"""Look-ahead scores of coming steps are stored by example, so that another number of processes can resume."""

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch

from humanline_fused.training.data.batch import collate
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.plan import BatchPlan, BatchSizes
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.pending import by_example, in_batches, joined
from tests.tiny_model import records, tiny_tokenizer

MAX_LENGTH = 9


def scored(examples: Sequence[Example], plan: BatchPlan, rank: int, objective: str) -> list[dict[str, torch.Tensor]]:
    """Return a score for every token of step 1 that depends on all tokens up to it; 0 in the padding."""
    step = []
    for micro in plan.window(1, rank):
        batch = collate(examples, micro, find_objective(objective), pad_token_id=0, max_length=MAX_LENGTH)
        step.append(
            {
                f"{prefix}ref_logp": (part.input_ids.cumsum(-1) * part.attention_mask).float()
                for prefix, part in batch.passes.items()
            }
        )
    return step


LAYOUTS = [BatchSizes(*sizes) for sizes in ((4, 1, 1), (2, 1, 2), (1, 1, 4), (2, 2, 1), (1, 2, 2))]
"""Batch size, accumulation, ranks: a global batch of 4."""


def moves(objective: str) -> Iterator[tuple[BatchPlan, BatchPlan]]:
    """Yield all pairs of different layouts; for KTO only those with equal global micro-batches, which fix its pairs."""
    for pair in itertools.permutations(LAYOUTS, 2):
        before, after = (BatchPlan(8, sizes, seed=3) for sizes in pair)
        if objective != "kto" or before.sizes.micro_batch == after.sizes.micro_batch:
            yield before, after


MOVES = [(objective, *plans) for objective in ("dpo", "kto", "grpo") for plans in moves(objective)]


@pytest.mark.parametrize(("objective", "before", "after"), MOVES)
def test_scores_split_on_some_ranks_are_joined_on_others(objective: str, before: BatchPlan, after: BatchPlan):
    examples = prepare(
        records(objective, 8), tiny_tokenizer(), find_objective(objective), max_length=MAX_LENGTH
    ).examples
    kind = find_objective(objective)
    parts = [
        {1: by_example(scored(examples, before, rank, objective), before.window(1, rank), examples, kind, MAX_LENGTH)}
        for rank in range(before.sizes.world_size)
    ]
    (step,) = joined(parts).values()
    for rank in range(after.sizes.world_size):
        together = in_batches(step, after.window(1, rank), kind)
        for mine, expected in zip(together, scored(examples, after, rank, objective), strict=True):
            assert mine.keys() == expected.keys()
            assert all(torch.equal(mine[name], expected[name]) for name in expected)


def test_an_example_without_scores_is_an_error():
    window = BatchPlan(4, BatchSizes(2), seed=0).window(0, 0)
    with pytest.raises(KeyError):
        in_batches({}, window, find_objective("dpo"))
