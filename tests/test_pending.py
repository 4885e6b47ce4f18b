"""Scores that wait for their step are kept by example, so that another number of processes can go on with them."""

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch

from humanline_fused.training.data.batch import collate
from humanline_fused.training.data.plan import BatchPlan
from humanline_fused.training.data.prepare import Example, prepare
from humanline_fused.training.pending import by_example, in_batches, joined
from tests.tiny_model import records, tiny_tokenizer

MAX_LENGTH = 9


def scored(examples: Sequence[Example], plan: BatchPlan, rank: int, objective: str) -> list[dict[str, torch.Tensor]]:
    """A score for every token of step 1 that tells its position and what stands before it; 0 in the padding."""
    step = []
    for micro in plan.window(1, rank):
        batch = collate(examples, micro, objective, pad_token_id=0, max_length=MAX_LENGTH)
        kinds = ("", "kl_") if objective == "kto" else ("",)
        step.append(
            {
                f"{kind}ref_logp": (batch[f"{kind}input_ids"].cumsum(-1) * batch[f"{kind}attention_mask"]).float()
                for kind in kinds
            }
        )
    return step


LAYOUTS = [(4, 1, 1), (2, 1, 2), (1, 1, 4), (2, 2, 1), (1, 2, 2)]
"""Batch size, accumulation, ranks: a global batch of 4."""


def moves(objective: str) -> Iterator[tuple[BatchPlan, BatchPlan]]:
    """From any layout to any other. KTO's mismatched pairs stay within a global micro-batch, so that has to stay."""
    for pair in itertools.permutations(LAYOUTS, 2):
        before, after = (BatchPlan(8, *layout, seed=3) for layout in pair)
        if objective != "kto" or before.batch_size * before.world_size == after.batch_size * after.world_size:
            yield before, after


MOVES = [(objective, *plans) for objective in ("dpo", "kto", "grpo") for plans in moves(objective)]


@pytest.mark.parametrize(("objective", "before", "after"), MOVES)
def test_scores_taken_apart_on_some_ranks_are_put_together_on_others(
    objective: str, before: BatchPlan, after: BatchPlan
):
    examples = prepare(records(objective, 8), tiny_tokenizer(), objective, max_length=MAX_LENGTH).examples
    parts = [
        {1: by_example(scored(examples, before, rank, objective), before.window(1, rank), examples, objective, 9)}
        for rank in range(before.world_size)
    ]
    (step,) = joined(parts).values()
    for rank in range(after.world_size):
        together = in_batches(step, after.window(1, rank), objective)
        for mine, expected in zip(together, scored(examples, after, rank, objective), strict=True):
            assert mine.keys() == expected.keys()
            assert all(torch.equal(mine[name], expected[name]) for name in expected)


def test_an_example_without_scores_is_an_error():
    window = BatchPlan(4, 2, 1, 1, seed=0).window(0, 0)
    with pytest.raises(KeyError):
        in_batches({}, window, "dpo")
