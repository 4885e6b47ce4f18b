"""Tables of Arrow give the rows that were written, whatever Arrow adds to them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from datasets import Dataset, Features, Json, List, Value
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.data.reading.sources import read_records, read_rows
from humanline_fused.training.objectives import find_objective
from tests.data_files import arrow_sources, taken, write


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "parameters": {"type": "object", "properties": parameters}}


def call(name: str, **arguments: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}]


TOOL_TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}{{ '<' + m['role'] + '>' }}"
    "{% if 'content' in m %}{{ m['content'] }}{% endif %}{% for c in m.tool_calls or [] %}"
    "{{ c | tojson }}{% endfor %}<eos>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTION = [{"role": "user", "content": "Where is the blue chair?"}]
TOOLS = [tool("find", what={"type": "string"}, near={"enum": ["door", None]}), tool("lift", weight={"type": "number"})]
TOOL_ROWS = [
    {"prompt": QUESTION, "tools": TOOLS, "chosen": call("find", what="chair"), "rejected": call("lift", weight=2.5)},
    {
        "prompt": QUESTION,
        "tools": TOOLS[1:],
        "chosen": call("find", near="door"),
        "rejected": call("find", what="sofa"),
    },
    {
        "prompt": QUESTION,
        "tools": None,
        "chosen": call("lift"),
        "rejected": [{"role": "assistant", "content": "In the hall."}],
    },
]


def test_keys_that_arrow_added_are_removed_from_every_source(tmp_path: Path):
    for name, source in arrow_sources(tmp_path, TOOL_ROWS).items():
        assert [record for _, record in read_records(source)] == TOOL_ROWS, name


def test_rows_with_tools_of_different_parameters_have_the_same_tokens_from_every_source(tmp_path: Path):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", chat_template=TOOL_TEMPLATE)

    def texts(source: Any) -> list[list[str]]:
        examples = prepare(source, tokenizer, find_objective("dpo"), max_length=4000).examples
        return [[str(tokenizer.decode(ids)) for ids in (e.prompt_ids, *e.completions)] for e in examples]

    rows = json.loads(json.dumps(TOOL_ROWS, sort_keys=True))  # Arrow has one order of keys; pyarrow 21 sorts them
    expected = texts(write(tmp_path / "data.jsonl", *map(json.dumps, rows)))
    assert expected[1][0] == (
        '{"name": "lift", "parameters": {"properties": {"weight": {"type": "number"}}, "type": "object"}}\n'
        "<user>Where is the blue chair?<eos>\n<assistant>"
    )
    assert expected[2][1] == '{"function": {"arguments": {}, "name": "lift"}}<eos>\n'
    for name, source in arrow_sources(tmp_path, rows).items():
        assert texts(source) == expected, name


def test_a_null_that_was_written_stays_in_json_and_in_json_columns(tmp_path: Path):
    row = {"prompt": "a", "tools": [{"default": None, "enum": [None, 1]}], "note": None, "notes": [None, {"a": None}]}
    jsonl = write(tmp_path / "data.jsonl", json.dumps(row))
    features = Features({"prompt": Value("string"), "tools": Json(), "note": Value("string"), "notes": List(Json())})
    dataset = Dataset.from_list([row], features=features)
    for source in ([row], jsonl, dataset):
        ((_, record),) = read_records(source)
        assert record == row
    ((_, record),) = read_records(Dataset.from_list([row]))
    assert record == {"prompt": "a", "tools": [{"enum": [None, 1]}], "note": None, "notes": [None, {}]}


def test_numbers_and_half_characters_in_json_columns_are_read_exactly(tmp_path: Path):
    texts = ['{"big": 123456789012345678901234567890, "small": 0.30000000000000004}', '{"a": "b\\ud83d"}', '{"a": 1']
    table = pa.table({"prompt": ["a"] * 3, "tools": pa.array(texts, pa.json_())})
    parquet.write_table(table, tmp_path / "data.parquet")
    (_, first), (_, half), (_, cut) = read_rows(tmp_path / "data.parquet")
    assert first == {"prompt": "a", "tools": {"big": 123456789012345678901234567890, "small": 0.30000000000000004}}
    assert str(half).endswith("data.parquet, example 1: half a surrogate pair at character 1 of tools.a")
    assert "data.parquet, example 2: Expecting" in str(cut)


@pytest.mark.parametrize("form", ["torch", "numpy", "pandas", "arrow", "polars"])
def test_the_format_of_a_dataset_is_no_matter(tmp_path: Path, form: str):
    rows = [
        {"prompt": "w1", "completions": [" w2", " w3"], "rewards": [1.0, 0.25], "label": True, "tools": [{"a": 1}]},
        {"prompt": "w1", "completions": [" w2"], "rewards": [1.0], "label": False, "tools": [{"b": {"c": 2}}]},
    ]
    dataset = Dataset.from_list(rows)
    if form == "polars":
        dataset.set_format("torch", columns=["prompt"])  # a format of some columns alone
    else:
        dataset = dataset.with_format(form)
    dataset.save_to_disk(tmp_path / "saved")
    for source in (dataset, tmp_path / "saved"):
        assert [record for _, record in read_records(source)] == rows


def test_scalars_and_arrays_of_numpy_and_torch_in_memory_are_numbers_and_lists():
    rows = [
        {
            "prompt": np.str_("w1"),
            "completions": np.array([" w2", " w3"], dtype=object),
            "rewards": np.array([1.0, 0.5]),
        },
        {"prompt": "w1", "completions": [" w2", " w3"], "rewards": torch.tensor([1.0, 0.5])},
        {"prompt": "w1", "completions": [" w2", " w3"], "rewards": [np.float32(1.0), np.float64(0.5)]},
    ]
    plain = {"prompt": "w1", "completions": [" w2", " w3"], "rewards": [1.0, 0.5]}
    records = [record for _, record in read_records(rows)]
    assert records == [plain] * 3
    assert {type(value) for record in records for value in record["rewards"]} == {float}
    label = {"prompt": "w1", "completion": " w2", "label": np.bool_(True)}
    assert taken([label], "kto") == taken([label | {"label": True}], "kto")
