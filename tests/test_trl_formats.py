"""The examples of TRL's page "Dataset formats and types" are accepted unchanged, and give TRL's token ids."""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from trl.data_utils import extract_prompt, maybe_extract_prompt
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.data.reading.sources import read_records
from humanline_fused.training.data.rows.records import PROMPTS, read_row, type_of
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.objectives.table import ROUND

QUESTION = {"role": "user", "content": "What color is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}
SYSTEM = {"role": "system", "content": "You are helpful."}

PREFERENCE = {
    "standard, explicit prompt": {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    "standard, implicit prompt": {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    "conversational, explicit prompt": {"prompt": [QUESTION], "chosen": [BLUE], "rejected": [GREEN]},
    "conversational, implicit prompt": {"chosen": [QUESTION, BLUE], "rejected": [QUESTION, GREEN]},
}
UNPAIRED = {
    "standard": {"prompt": "The sky is", "completion": " blue.", "label": True},
    "conversational": {"prompt": [QUESTION], "completion": [GREEN], "label": False},
}
PROMPT_ONLY = {"standard": {"prompt": "The sky is"}, "conversational": {"prompt": [QUESTION]}}

TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"what": {"type": "string"}}}},
}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "look_up"}}]}
BEYOND_THE_PAGE = {
    "a system message": {"prompt": [SYSTEM, QUESTION], "chosen": [BLUE], "rejected": [GREEN]},
    "a system message in the implicit prompt": {
        "chosen": [SYSTEM, QUESTION, BLUE],
        "rejected": [SYSTEM, QUESTION, GREEN],
    },
    "scores beside": PREFERENCE["standard, explicit prompt"] | {"score_chosen": 9.0, "score_rejected": 1.0},
    "no space to take back": {"chosen": "The skylight", "rejected": "The skyline"},
    "two that are equal": {"chosen": "The sky is blue.", "rejected": "The sky is blue."},
    "one that goes on": {"chosen": "The sky is blue.", "rejected": "The sky is blue. Always."},
    "nothing in common": {"chosen": "Blue it is", "rejected": "Green it is"},
    "tools": PREFERENCE["conversational, explicit prompt"] | {"tools": [TOOL]},
    "tools as JSON": PREFERENCE["conversational, explicit prompt"] | {"tools": json.dumps([TOOL])},
    "a call": {"prompt": [QUESTION], "chosen": [CALL], "rejected": [GREEN], "tools": [TOOL]},
    "template settings": PREFERENCE["conversational, explicit prompt"] | {"chat_template_kwargs": {"mood": "dreamy"}},
    "a token across the boundary": {"prompt": "The sk", "chosen": "y is blue.", "rejected": " is green."},
    "an end of sequence that is there": {"prompt": "The sky is", "chosen": " blue.</s>", "rejected": " green."},
    "nothing said": {"prompt": "The sky is", "chosen": " blue.", "rejected": ""},
}


def byte_pair_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on the page's sentences; its template renders tools, calls and a setting."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["</s>", "<pad>", "<user>", "<assistant>", "<system>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = ["The sky is blue.", "The sky is green.", QUESTION["content"], "It is blue.", "It is green."]
    tokenizer.train_from_iterator(sentences, trainer)
    template = (
        "{% if tools %}{{ '<system>' + (tools | tojson) + '</s>' }}{% endif %}{{ mood or '' }}"
        "{% for m in messages %}{{ '<' + m['role'] + '>' + (m['content'] or '') }}"
        "{% if m['tool_calls'] %}{{ m['tool_calls'][0]['function']['name'] }}{% endif %}{{ '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", chat_template=template
    )


TOKENIZER = byte_pair_tokenizer()


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ours(path: Path, objective: str, max_length: int = 200) -> list[tuple[Any, ...]]:
    """Return prompt, completions and weight of every example."""
    examples = prepare(path, TOKENIZER, find_objective(objective), max_length=max_length).examples
    return [(e.prompt_ids.tolist(), *(c.tolist() for c in e.completions), e.weight) for e in examples]


def trls(trainer: Any, rows: Sequence[Any], max_length: int = 200) -> list[dict[str, Any]]:
    """Return the rows as TRL's trainer prepares them before its first step."""
    itself = SimpleNamespace(_tokenizer=TOKENIZER, calculate_KL=False, desirable_weight=1.0, undesirable_weight=1.0)
    args = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    with tempfile.TemporaryDirectory() as folder:
        # Not from_list: older versions of pyarrow sort the keys of Python's dicts.
        data: Any = Dataset.from_json(str(written(Path(folder, "data.jsonl"), *rows)), cache_dir=folder)
        return list(trainer._prepare_dataset(itself, data, TOKENIZER, args, "train"))


@pytest.mark.parametrize("name", [*PREFERENCE, *BEYOND_THE_PAGE])
def test_a_pair_has_trls_tokens_for_dpo_and_for_kto(tmp_path: Path, name: str):
    row = (PREFERENCE | BEYOND_THE_PAGE)[name]
    path = written(tmp_path / "data.jsonl", row)
    (pair,) = trls(DPOTrainer, [row])
    assert ours(path, "dpo") == [(pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"], 0.0)]
    singles = [(single["prompt_ids"], single["completion_ids"], single["label"]) for single in trls(KTOTrainer, [row])]
    assert ours(path, "kto") == singles


@pytest.mark.parametrize("name", [name for name, row in (PREFERENCE | BEYOND_THE_PAGE).items() if "prompt" not in row])
def test_the_prompt_split_from_a_pair_is_that_of_trl(name: str):
    record = (PREFERENCE | BEYOND_THE_PAGE)[name]
    row, found = read_row("line 1", record, find_objective("dpo")), extract_prompt(record)
    assert (row.prompt, *row.completions) == (found["prompt"], found["chosen"], found["rejected"])


def test_without_a_common_start_the_prompt_is_empty_even_if_chosen_ends_in_a_space():
    """TRL compares the character at index -1, in Python the last one, and makes chosen the prompt."""
    record = {"chosen": "Blue ", "rejected": "Green"}
    assert extract_prompt(record)["prompt"] == "Blue"
    row = read_row("line 1", record, find_objective("dpo"))
    assert (row.prompt, *row.completions) == ("", "Blue ", "Green")


@pytest.mark.parametrize("name", list(UNPAIRED))
def test_an_unpaired_completion_has_trls_tokens_and_its_label(tmp_path: Path, name: str):
    (single,) = trls(KTOTrainer, [UNPAIRED[name]])
    path = written(tmp_path / "data.jsonl", UNPAIRED[name])
    assert ours(path, "kto") == [(single["prompt_ids"], single["completion_ids"], single["label"])]


@pytest.mark.parametrize("name", list(PROMPT_ONLY))
def test_a_prompt_alone_is_for_rounds(tmp_path: Path, name: str):
    path = written(tmp_path / "data.jsonl", PROMPT_ONLY[name])
    ((where, record),) = read_records(path)
    assert type_of(record) is PROMPTS
    assert read_row(where, record, ROUND).prompt == PROMPT_ONLY[name]["prompt"]
    for objective in ("dpo", "kto", "grpo"):
        with pytest.raises(ValueError, match=r"line 1: this looks like prompt-only data .*rounds \(--rollout_every\)"):
            prepare(path, TOKENIZER, find_objective(objective), max_length=64)


def test_messages_beside_a_prompt_that_is_text_begin_with_the_prompt(tmp_path: Path):
    row = {"prompt": QUESTION["content"], "chosen": [QUESTION, BLUE], "rejected": [QUESTION, GREEN]}
    (pair,) = trls(DPOTrainer, [maybe_extract_prompt(row)])
    path = written(tmp_path / "data.jsonl", row)
    assert ours(path, "dpo") == [(pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"], 0.0)]


def test_trl_drops_the_same_prompts(tmp_path: Path):
    rows = [PREFERENCE["standard, explicit prompt"] | {"prompt": "The sky is" + " blue." * n} for n in range(4)]
    lengths = [len(pair["prompt_ids"]) for pair in trls(DPOTrainer, rows)]
    longest = lengths[2]
    kept = trls(DPOTrainer, rows, longest)
    assert [len(pair["prompt_ids"]) for pair in kept] == lengths[:2]
    assert [prompt for prompt, *_ in ours(written(tmp_path / "data.jsonl", *rows), "dpo", longest)] == [
        pair["prompt_ids"] for pair in kept
    ]


@pytest.mark.parametrize(
    ("row", "looks"),
    [
        ({"text": "The sky is blue."}, "language modeling data (text)"),
        ({"messages": [QUESTION, BLUE]}, "language modeling data (messages)"),
        ({"prompt": "The sky is", "completion": " blue."}, "prompt-completion data (prompt, completion)"),
        (
            {"prompt": "Which?", "completions": ["9.8.", "Hence."], "labels": [True, False]},
            "stepwise supervision data (prompt, completions, labels)",
        ),
    ],
)
def test_types_without_a_preference_are_named_and_refused(tmp_path: Path, row: dict[str, Any], looks: str):
    said = re.escape(f"data.jsonl, line 1: this looks like {looks}, which no objective takes; dpo needs prompt, chosen")
    with pytest.raises(ValueError, match=said):
        prepare(written(tmp_path / "data.jsonl", row), TOKENIZER, find_objective("dpo"), max_length=64)
