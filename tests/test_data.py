"""From preference data to padded batches."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict

from humanline_fused.targets import shift_targets
from humanline_fused.training.advantages import advantages
from humanline_fused.training.batch import collate, num_loss_tokens
from humanline_fused.training.data import fingerprint, prepare, tokenize
from humanline_fused.training.plan import MicroBatch
from tests.tiny_model import records, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def ids(text: str) -> list[int]:
    return [TOKENIZER.get_vocab()[word] for word in text.split()]


def prepared(source: Any, objective: str = "dpo", max_length: int = 64, **settings: Any):
    return prepare(source, TOKENIZER, objective, max_length=max_length, **settings)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


PAIR = {"prompt": "w1 w2", "chosen": " w3", "rejected": " w4 w5"}
MESSAGES = {
    "prompt": [{"role": "user", "content": "w1"}],
    "chosen": [{"role": "assistant", "content": "w2"}],
    "rejected": [{"role": "assistant", "content": "w3 w4"}],
}


# Tokens


def test_plain_text_ends_with_one_end_of_sequence_token():
    assert tokenize(TOKENIZER, "w1 w2", [" w3", " w4 <eos>"]) == (ids("w1 w2"), [ids("w3 <eos>"), ids("w4 <eos>")])


def test_a_chat_template_brings_its_own_end_and_the_generation_prompt_belongs_to_the_prompt():
    prompt, completions = tokenize(TOKENIZER, MESSAGES["prompt"], [MESSAGES["chosen"], MESSAGES["rejected"]])
    assert prompt == ids("<user> w1 <eos> <assistant>")
    assert completions == [ids("w2 <eos>"), ids("w3 w4 <eos>")]


def test_a_completion_begins_where_either_side_parts_from_the_prompt():
    # "w1" + "2 w3" becomes the token "w12", so the prompt's last token belongs to neither prompt.
    assert tokenize(TOKENIZER, "w9 w1", ["2 w3", " w4"]) == (ids("w9"), [ids("w12 w3 <eos>"), ids("w1 w4 <eos>")])


def test_a_prompt_that_fills_max_length_is_dropped_and_counted_and_longer_completions_keep_their_start():
    long = {"prompt": "w1 w2 w3 w4", "chosen": " w5", "rejected": " w6"}
    data = prepared([PAIR, long], max_length=4)
    assert data.dropped == 1
    (example,) = data.examples
    assert example.prompt_ids.tolist() == ids("w1 w2")
    assert [c.tolist() for c in example.completions] == [ids("w3 <eos>"), ids("w4 w5")]


def test_what_was_cut_and_what_teaches_nothing_is_counted():
    assert prepared([PAIR, PAIR | {"chosen": " w3 w4 w5 w6"}], max_length=5).truncated == 1
    groups = [{"prompt": "w1", "completions": [" w2", " w3"], "rewards": rewards} for rewards in ([1, 1], [0, 1])]
    assert prepared(groups, "grpo").groups_without_signal == 1


def test_data_that_differ_in_a_token_in_a_boundary_or_in_a_weight_have_different_fingerprints():
    pairs = [PAIR, PAIR | {"chosen": " w4"}, PAIR | {"prompt": "w1", "chosen": " w2 w3"}]
    codes = [fingerprint(prepared([pair]).examples) for pair in pairs]
    liked = {"prompt": "w1", "completion": " w2", "label": True}
    codes += [fingerprint(prepared([row], "kto").examples) for row in (liked, liked | {"label": False})]
    assert len(set(codes)) == len(codes)
    assert fingerprint(prepared([PAIR]).examples) == codes[0]


def test_a_dataset_of_which_nothing_is_left_is_refused_with_the_count():
    with pytest.raises(ValueError, match=r"got none \(1 dropped: prompt >= max_length=2\)"):
        prepared([PAIR], max_length=2)


# GRPO's advantages


def test_advantages_divide_by_the_population_standard_deviation_plus_a_hundredth():
    assert advantages([0.0, 1.0], scale="group") == [-0.5 / 0.51, 0.5 / 0.51]
    assert advantages([0.0, 1.0], scale="none") == [-0.5, 0.5]


def test_each_completion_of_a_group_becomes_an_example_with_its_own_advantage():
    row = {"prompt": "w1", "completions": [" w2", " w3", " w4"], "rewards": [0.0, 3.0, 3.0]}
    data = prepared([row], "grpo", scale_rewards="none")
    assert [(e.completions[0].tolist(), e.weight) for e in data.examples] == [
        (ids("w2 <eos>"), -2.0),
        (ids("w3 <eos>"), 1.0),
        (ids("w4 <eos>"), 1.0),
    ]


# Sources


def test_jsonl_parquet_a_saved_folder_a_dataset_and_a_list_give_the_same_examples(tmp_path: Path):
    rows = [MESSAGES, MESSAGES | {"chosen": [{"role": "assistant", "content": "w9"}]}]
    dataset = Dataset.from_list(rows)
    dataset.save_to_disk(tmp_path / "folder")
    DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(tmp_path / "splits")
    dataset.to_parquet(tmp_path / "data.parquet")
    jsonl = write(tmp_path / "data.jsonl", json.dumps(rows[0]), "", json.dumps(rows[1]))
    sources = [jsonl, str(tmp_path / "folder"), tmp_path / "splits", tmp_path / "data.parquet", dataset, rows]
    seen = [[[c.tolist() for c in e.completions] for e in prepared(source).examples] for source in sources]
    assert all(examples == seen[0] for examples in seen)
    assert len(prepared(tmp_path / "splits", split="test").examples) == 1
    with pytest.raises(ValueError, match=r"expected a split 'dev', it has \['test', 'train'\]"):
        prepared(tmp_path / "splits", split="dev")


def test_data_that_cannot_be_read_by_index_are_refused_because_they_cannot_be_seen_ahead():
    stream = Dataset.from_list([PAIR]).to_iterable_dataset()
    for source in (stream, iter([PAIR])):
        with pytest.raises(TypeError, match=f"seen ahead, got {type(source).__name__}"):
            prepared(source)


@pytest.mark.parametrize(
    ("objective", "line", "said"),
    [
        ("dpo", '{"prompt": "w1", ', "expected one JSON object per line"),
        ("dpo", '["w1"]', "expected an object with the columns prompt, chosen, rejected"),
        ("dpo", '{"prompt": "w1", "chosen": "w2"}', "lacks 'rejected'; dpo needs prompt, chosen, rejected"),
        ("dpo", json.dumps(PAIR | {"chosen": MESSAGES["chosen"]}), "all to be text or all to be lists"),
        ("dpo", json.dumps(PAIR | {"chosen": 3}), "all to be text or all to be lists"),
        ("kto", '{"prompt": "w1", "completion": "w2", "label": "yes"}', "label to be true or false, got 'yes'"),
        ("grpo", '{"prompt": "w1", "completions": ["w2", "w3"], "rewards": [1]}', "expected 2 finite rewards"),
        ("grpo", '{"prompt": "w1", "completions": ["w2", "w3"], "rewards": [1, NaN]}', "expected 2 finite rewards"),
        ("grpo", '{"prompt": "w1", "completions": ["w2", "w3"], "rewards": [1, 1e999]}', "expected 2 finite rewards"),
        ("grpo", '{"prompt": "w1", "completions": ["w2"], "rewards": [1]}', "a group of one has no baseline"),
    ],
)
def test_a_bad_jsonl_line_is_named_by_file_and_number(tmp_path: Path, objective: str, line: str, said: str):
    good = json.dumps(records(objective, 2)[0])
    path = write(tmp_path / "data.jsonl", good, "", line)
    with pytest.raises(ValueError, match=r"data\.jsonl, line 3: .*") as caught:
        prepared(path, objective)
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"expected a JSONL file at .*nowhere\.jsonl"):
        prepared(tmp_path / "nowhere.jsonl")


# Batches


def test_a_batch_is_padded_on_the_right_and_counts_the_completions_alone():
    examples = prepared([PAIR, PAIR | {"prompt": "w7"}]).examples
    batch = collate(examples, MicroBatch((1, 0), (0, 1)), "dpo", pad_token_id=0, max_length=64)
    chosen_first = ["w7 w3 <eos>", "w1 w2 w3 <eos>", "w7 w4 w5 <eos>", "w1 w2 w4 w5 <eos>"]
    for row, text in enumerate(chosen_first):
        expected = ids(text)
        assert batch["input_ids"][row].tolist() == expected + [0] * (5 - len(expected))
        assert batch["attention_mask"][row].tolist() == [1] * len(expected) + [0] * (5 - len(expected))
        prompt = 1 if row % 2 == 0 else 2
        assert batch["completion_mask"][row].tolist() == [prompt <= t < len(expected) for t in range(5)]


def test_kto_pairs_each_prompt_with_the_completion_that_follows():
    rows = [{"prompt": f"w{i}", "completion": f" w{i + 10}", "label": i == 0} for i in range(3)]
    batch = collate(prepared(rows, "kto").examples, MicroBatch((0, 2), (2, 1)), "kto", pad_token_id=0, max_length=64)
    assert batch["input_ids"].tolist() == [ids("w0 w10 <eos>"), ids("w2 w12 <eos>")]
    assert batch["kl_input_ids"].tolist() == [ids("w0 w12 <eos>"), ids("w2 w11 <eos>")]
    assert batch["desirable"].tolist() == [True, False]


@pytest.mark.parametrize("max_length", [4, 64])
def test_the_tokens_that_a_loss_counts_are_known_without_building_the_batch(objective: str, max_length: int):
    examples = prepared(records(objective, 12), objective, max_length).examples
    examples += prepared(records(objective, 2) if objective == "grpo" else records(objective, 1), objective).examples[
        :1
    ]
    everything = MicroBatch(tuple(range(len(examples))), tuple(range(len(examples))))
    batch = collate(examples, everything, objective, pad_token_id=0, max_length=64)
    _, loss_mask = shift_targets(batch["input_ids"], batch["completion_mask"])
    assert sum(map(num_loss_tokens, examples)) == int(loss_mask.sum())


def test_an_empty_prompt_leaves_the_completions_first_token_uncounted():
    (example,) = prepared([PAIR | {"prompt": ""}]).examples
    batch = collate([example], MicroBatch((0,), (0,)), "dpo", pad_token_id=0, max_length=64)
    _, loss_mask = shift_targets(batch["input_ids"], batch["completion_mask"])
    assert num_loss_tokens(example) == int(loss_mask.sum()) == 3
    assert isinstance(example.prompt_ids, torch.Tensor)
