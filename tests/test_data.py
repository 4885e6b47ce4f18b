"""Conversion of datasets to token ids and padded batches."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from humanline_fused.training.data.advantages import advantages, batch_scale
from humanline_fused.training.data.batch import collate, num_loss_tokens
from humanline_fused.training.data.examples import fingerprint
from humanline_fused.training.data.findings import (
    BARE_END,
    DROPPED,
    EMPTY,
    NO_SIGNAL,
    NO_SIGNAL_DROPPED,
    TOKENS_MERGED,
    TRUNCATED,
    Cause,
)
from humanline_fused.training.data.plan import MicroBatch
from humanline_fused.training.data.prefix import common_length
from humanline_fused.training.data.prepare import PreparedData, prepare
from humanline_fused.training.objectives import find_objective
from tests.tiny_model import records, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def ids(text: str) -> list[int]:
    return [TOKENIZER.get_vocab()[word] for word in text.split()]


def prepared(source: Any, objective: str = "dpo", max_length: int = 64, **settings: Any):
    return prepare(source, TOKENIZER, find_objective(objective), max_length=max_length, **settings)


def counts(data: PreparedData, *causes: Cause) -> tuple[int, ...]:
    """Return the number of examples, and how often each cause was found."""
    return (len(data.examples), *map(data.findings.count, causes))


def tokens(row: dict[str, Any]) -> tuple[list[int], list[list[int]]]:
    (example,) = prepared([row]).examples
    return example.prompt_ids.tolist(), [completion.tolist() for completion in example.completions]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


PAIR = {"prompt": "w1 w2", "chosen": " w3", "rejected": " w4 w5"}
GROUPS = [{"prompt": "w1", "completions": [" w2", " w3"], "rewards": rewards} for rewards in ([1, 1], [0, 1])]
MESSAGES = {
    "prompt": [{"role": "user", "content": "w1"}],
    "chosen": [{"role": "assistant", "content": "w2"}],
    "rejected": [{"role": "assistant", "content": "w3 w4"}],
}


# Tokens


def test_the_common_beginning_of_texts_of_any_lengths_is_found():
    for common, mine, other in itertools.product(range(9), range(4), range(4)):
        assert common_length("a" * common + "b" * mine, "a" * common + "c" * other) == common


def test_plain_text_ends_with_one_end_of_sequence_token():
    row = {"prompt": "w1 w2", "chosen": " w3", "rejected": " w4 <eos>"}
    assert tokens(row) == (ids("w1 w2"), [ids("w3 <eos>"), ids("w4 <eos>")])


def test_a_chat_template_adds_the_end_and_the_prompt_has_the_generation_prompt():
    prompt, completions = tokens(MESSAGES)
    assert prompt == ids("<user> w1 <eos> <assistant>")
    assert completions == [ids("w2 <eos>"), ids("w3 w4 <eos>")]


def test_a_completion_begins_where_either_side_differs_from_the_prompt():
    # "w1" + "2 w3" becomes the token "w12", so the prompt's last token belongs to neither prompt.
    row = {"prompt": "w9 w1", "chosen": "2 w3", "rejected": " w4"}
    assert tokens(row) == (ids("w9"), [ids("w12 w3 <eos>"), ids("w1 w4 <eos>")])


def test_a_prompt_whose_last_token_merges_with_a_completion_is_counted():
    data = prepared([PAIR | {"chosen": "7 w3"}, PAIR])
    assert data.findings.count(TOKENS_MERGED) == 1
    assert [len(example.prompt_ids) for example in data.examples] == [1, 2]


def test_a_prompt_of_max_length_is_dropped_and_long_completions_keep_their_start():
    long = {"prompt": "w1 w2 w3 w4", "chosen": " w5", "rejected": " w6"}
    data = prepared([PAIR, long], max_length=4)
    assert counts(data, DROPPED) == (1, 1)
    (example,) = data.examples
    assert example.prompt_ids.tolist() == ids("w1 w2")
    assert [c.tolist() for c in example.completions] == [ids("w3 <eos>"), ids("w4 w5")]


def test_cut_completions_and_groups_without_signal_are_counted():
    assert counts(prepared([PAIR, PAIR | {"chosen": " w3 w4 w5 w6"}], max_length=5), TRUNCATED) == (2, 1)
    assert counts(prepared(GROUPS, "grpo"), NO_SIGNAL) == (4, 1)


def test_groups_of_equal_rewards_are_dropped_with_drop_no_signal_and_else_kept():
    kept, dropped = (prepared(GROUPS, "grpo", drop_no_signal=drop) for drop in (False, True))
    assert counts(kept, NO_SIGNAL, NO_SIGNAL_DROPPED) == (4, 1, 0)
    assert counts(dropped, NO_SIGNAL, NO_SIGNAL_DROPPED) == (2, 0, 1)
    with pytest.raises(ValueError, match=r"got none \(groups without signal, dropped with beta=0: 1"):
        prepared(GROUPS[:1], "grpo", drop_no_signal=True)


def test_a_completion_without_a_token_is_dropped_and_one_with_only_an_end_is_kept():
    said_nothing = PAIR | {"rejected": ""}
    data = prepared([PAIR, said_nothing])
    assert counts(data, EMPTY, BARE_END) == (2, 0, 1)
    assert [c.tolist() for c in data.examples[1].completions] == [ids("w3 <eos>"), ids("<eos>")]
    assert counts(prepared([PAIR | {"rejected": " \n<eos>"}]), BARE_END) == (1, 1)
    chat = {side: [{"role": role, "content": "w1"}] for side, role in (("prompt", "user"), ("chosen", "assistant"))}
    for content in ("", " "):
        row = chat | {"rejected": [{"role": "assistant", "content": content, "id": "7"}]}
        assert counts(prepared([row]), BARE_END) == (1, 1)
    endless = tiny_tokenizer()
    endless.eos_token = None
    for objective, rows, left in (
        ("dpo", [PAIR, said_nothing], 1),
        ("kto", [PAIR, said_nothing], 3),
        ("grpo", [GROUPS[1], GROUPS[1] | {"completions": [" w2", ""]}], 3),
    ):
        data = prepare(rows, endless, find_objective(objective), max_length=64)
        assert counts(data, EMPTY, BARE_END) == (left, 1, 0)


def test_dropping_a_completion_does_not_change_the_advantages_of_its_group():
    endless = tiny_tokenizer()
    endless.eos_token = None
    row = {"prompt": "w1", "completions": ["", " w2", " w3"], "rewards": [0.0, 3.0, 3.0]}
    data = prepare([row], endless, find_objective("grpo"), max_length=64, scale_rewards="none")
    assert [example.weight for example in data.examples] == [1.0, 1.0]


def test_without_a_prompt_a_completion_of_one_token_is_dropped():
    data = prepared([{"prompt": "", "completion": text, "label": True} for text in ("", " w1")], "kto")
    assert [e.completions[0].tolist() for e in data.examples] == [ids("w1 <eos>")]
    assert counts(data, EMPTY) == (1, 1)


def test_another_token_boundary_weight_or_reward_changes_the_fingerprint():
    pairs = [PAIR, PAIR | {"chosen": " w4"}, PAIR | {"prompt": "w1", "chosen": " w2 w3"}]
    codes = [fingerprint(prepared([pair]).examples) for pair in pairs]
    liked = {"prompt": "w1", "completion": " w2", "label": True}
    groups = [GROUPS[1], GROUPS[1] | {"rewards": [1, 2]}]  # the same distances from the mean
    codes += [fingerprint(prepared([group], "grpo", scale_rewards="batch").examples) for group in groups]
    codes += [fingerprint(prepared([row], "kto").examples) for row in (liked, liked | {"label": False})]
    assert len(set(codes)) == len(codes)
    assert fingerprint(prepared([PAIR]).examples) == codes[0]


def test_a_dataset_without_a_usable_example_is_refused_with_the_count():
    with pytest.raises(
        ValueError, match=r"got none \(dropped examples \(prompt >= max_length\): 1, e.g. dataset, example 0\)"
    ):
        prepared([PAIR], max_length=2)


# GRPO's advantages


def test_advantages_divide_by_the_population_standard_deviation_plus_a_hundredth():
    assert advantages([0.0, 1.0], scale="group") == [-0.5 / 0.51, 0.5 / 0.51]
    assert advantages([0.0, 1.0], scale="none") == [-0.5, 0.5]


def test_the_batch_scale_uses_rewards_and_not_their_distances_from_group_means():
    # Two groups, [0, 0] and [4, 4]: all distances are 0, the rewards' standard deviation is 2.
    assert batch_scale([0.0, 0.0, 4.0, 4.0]) == 2.0 + 1e-2


def test_scaled_by_batch_an_example_keeps_its_distance_from_the_mean_and_its_reward():
    row = {"prompt": "w1", "completions": [" w2", " w3"], "rewards": [0.0, 3.0]}
    examples = prepared([row], "grpo", scale_rewards="batch").examples
    assert [(e.weight, e.reward) for e in examples] == [(-1.5, 0.0), (1.5, 3.0)]


def test_each_completion_of_a_group_becomes_an_example_with_its_own_advantage():
    row = {"prompt": "w1", "completions": [" w2", " w3", " w4"], "rewards": [0.0, 3.0, 3.0]}
    data = prepared([row], "grpo", scale_rewards="none")
    assert [(e.completions[0].tolist(), e.weight) for e in data.examples] == [
        (ids("w2 <eos>"), -2.0),
        (ids("w3 <eos>"), 1.0),
        (ids("w4 <eos>"), 1.0),
    ]


def test_examples_of_a_group_are_a_unit_whatever_was_dropped_and_pairs_and_labels_are_none():
    endless = tiny_tokenizer()
    endless.eos_token = None
    said = [["", " w2", " w3"], ["", ""], [" w4", " w5"], [" w6", ""]]
    rows = [{"prompt": "w1", "completions": texts, "rewards": [*range(len(texts))]} for texts in said]
    units = prepare(rows, endless, find_objective("grpo"), max_length=64).examples.units
    assert units is not None
    assert (units.starts.tolist(), units.num_examples) == ([0, 2, 4], 5)
    assert [prepared([PAIR], objective).examples.units for objective in ("dpo", "kto")] == [None, None]


def test_units_are_those_of_the_rows_in_any_number_of_chunks():
    sizes = [2 + i % 3 for i in range(500)]
    rows = [{"prompt": f"w{i % 90}", "completions": [" w1"] * n, "rewards": [0] * n} for i, n in enumerate(sizes)]
    units = prepared(rows, "grpo").examples.units
    assert units is not None
    assert units.starts.tolist() == [0, *itertools.accumulate(sizes[:-1])]


# Batches


def test_a_batch_is_padded_on_the_right_and_counts_only_the_completions():
    examples = prepared([PAIR, PAIR | {"prompt": "w7"}]).examples
    batch = collate(examples, MicroBatch((1, 0), (0, 1)), find_objective("dpo"), pad_token_id=0, max_length=64)
    chosen_first = ["w7 w3 <eos>", "w1 w2 w3 <eos>", "w7 w4 w5 <eos>", "w1 w2 w4 w5 <eos>"]
    for row, text in enumerate(chosen_first):
        expected = ids(text)
        assert batch.input_ids[row].tolist() == expected + [0] * (5 - len(expected))
        prompt = 1 if row % 2 == 0 else 2
        start, end = batch.cu_seqlens[row : row + 2].tolist()
        assert batch.target_ids[0, start:end].tolist() == expected[prompt:]
        assert batch.source[start:end].tolist() == [row * 5 + t for t in range(prompt - 1, len(expected) - 1)]


def test_kto_pairs_each_prompt_with_the_next_completion():
    rows = [{"prompt": f"w{i}", "completion": f" w{i + 10}", "label": i == 0} for i in range(3)]
    batch = collate(
        prepared(rows, "kto").examples, MicroBatch((0, 2), (2, 1)), find_objective("kto"), pad_token_id=0, max_length=64
    )
    assert batch.input_ids.tolist() == [ids("w0 w10 <eos>"), ids("w2 w12 <eos>")]
    assert batch.kl.input_ids.tolist() == [ids("w0 w12 <eos>"), ids("w2 w11 <eos>")]
    assert batch.columns["desirable"].tolist() == [True, False]


@pytest.mark.parametrize("max_length", [4, 64])
def test_the_tokens_that_a_loss_counts_are_known_without_building_the_batch(objective: str, max_length: int):
    examples = list(prepared(records(objective, 12), objective, max_length).examples)
    examples += prepared(records(objective, 2) if objective == "grpo" else records(objective, 1), objective).examples[
        :1
    ]
    everything = MicroBatch(tuple(range(len(examples))), tuple(range(len(examples))))
    batch = collate(examples, everything, find_objective(objective), pad_token_id=0, max_length=64)
    assert sum(map(num_loss_tokens, examples)) == batch.target_ids.shape[1]


def test_an_empty_prompt_leaves_the_completions_first_token_uncounted():
    (example,) = prepared([PAIR | {"prompt": ""}]).examples
    batch = collate([example], MicroBatch((0,), (0,)), find_objective("dpo"), pad_token_id=0, max_length=64)
    assert num_loss_tokens(example) == batch.target_ids.shape[1] == 3
    assert isinstance(example.prompt_ids, torch.Tensor)
