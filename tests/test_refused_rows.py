"""A row that cannot be used is refused with its place and the reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.objectives import find_objective
from tests.data_files import MESSAGES, PAIR, prepared, write
from tests.tiny_model import records, tiny_tokenizer


@pytest.mark.parametrize(
    ("objective", "row", "said"),
    [
        (
            "dpo",
            {"prompt": "w1", "completion": "w2", "label": True},
            "line 2: this looks like unpaired preference data (prompt, completion, label), which objective='kto' takes"
            "; dpo needs prompt, chosen, rejected",
        ),
        (
            "dpo",
            {"prompt": "w1", "completions": ["w2", "w3"], "rewards": [0, 1]},
            "line 2: expected preference data (prompt, chosen, rejected), as in the rows before, got rewarded data",
        ),
        (
            "grpo",
            PAIR,
            "preference data (prompt, chosen, rejected), which objective='dpo' or objective='kto' takes; grpo",
        ),
        ("kto", {"prompt": "w1", "completion": "w2"}, "line 2: lacks 'label'; kto needs prompt, completion, label"),
        ("grpo", {"prompt": "w1", "completions": ["w2", "w3"]}, "line 2: lacks 'rewards'; grpo needs"),
        (
            "dpo",
            {"chosen": "w1 w2", "rejected": "w1 w3"},
            "line 2: expected preference data (prompt, chosen, rejected), as",
        ),
        ("kto", PAIR, "line 2: expected unpaired preference data (prompt, completion, label), as in the rows before"),
        ("dpo", MESSAGES | {"tools": "{"}, "line 2: tools: expected JSON, got '{'"),
        (
            "dpo",
            MESSAGES | {"tools": {"name": "f"}},
            "line 2: tools: expected a list of JSON schemas, got {'name': 'f'}",
        ),
        ("dpo", MESSAGES | {"chat_template_kwargs": [1]}, "chat_template_kwargs: expected an object, got [1]"),
        ("dpo", PAIR | {"tools": [{"name": "f"}]}, "line 2: tools: expected a prompt of messages"),
        ("dpo", PAIR | {"images": [1]}, "line 2: expected text alone, got 'images'"),
        ("kto", {"prompt": "w1", "completion": "w2", "label": 2}, "label to be true or false, got 2"),
        ("grpo", {"prompt": "w1", "completions": "w2", "rewards": [1]}, "expected completions to be a list, got 'w2'"),
    ],
)
def test_a_row_that_the_objective_cannot_use_is_refused_with_file_and_line(
    tmp_path: Path, objective: str, row: dict[str, Any], said: str
):
    path = write(tmp_path / "data.jsonl", json.dumps(records(objective, 2)[0]), json.dumps(row))
    with pytest.raises(ValueError, match=r"data\.jsonl, line 2: ") as caught:
        prepared(path, objective)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ({"chosen": MESSAGES["chosen"], "rejected": MESSAGES["rejected"]}, "to begin with the same messages"),
        ({"chosen": "", "rejected": "w1"}, "to begin with their prompt, got one that is empty"),
        ({"chosen": "w1 w2", "rejected": MESSAGES["rejected"]}, "all to be text or all to be lists"),
    ],
)
def test_a_pair_without_a_common_prompt_is_refused(pair: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=f"dataset, example 0: expected .*{said}"):
        prepared([pair])


def test_messages_that_the_template_rejects_are_reported_with_their_row():
    bare = tiny_tokenizer()
    bare.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="dataset, example 0: the tokenizer does not take it: roles must alternate"):
        prepare([MESSAGES], bare, find_objective("dpo"), max_length=64)
    bare.chat_template = None
    with pytest.raises(ValueError, match=r"dataset, example 0: the tokenizer does not take it: .*chat_template"):
        prepare([MESSAGES], bare, find_objective("dpo"), max_length=64)
