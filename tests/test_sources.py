"""All kinds of source give the same rows, and errors name the file and line."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Json, List, Value, load_dataset
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.data.reading import sources
from humanline_fused.training.data.reading.sources import read_records, read_rows
from humanline_fused.training.objectives import find_objective
from tests.tiny_model import records, tiny_tokenizer

ROOT = Path(__file__).parent.parent
TOKENIZER = tiny_tokenizer()
PAIR = {"prompt": "w1 w2", "chosen": " w3", "rejected": " w4 w5"}
MESSAGES = {
    "prompt": [{"role": "user", "content": "w1"}],
    "chosen": [{"role": "assistant", "content": "w2"}],
    "rejected": [{"role": "assistant", "content": "w3 w4"}],
}


def prepared(source: Any, objective: str = "dpo", **settings: Any):
    return prepare(source, TOKENIZER, find_objective(objective), max_length=64, **settings)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def write_table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    """Write texts unchanged, and everything else as JSON."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        for row in rows:
            table.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
    return path


def taken(source: Any, objective: str, **settings: Any) -> list[tuple[Any, ...]]:
    examples = prepared(source, objective, **settings).examples
    return [(e.prompt_ids.tolist(), [c.tolist() for c in e.completions], e.weight, e.reward) for e in examples]


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


def test_data_that_cannot_be_read_by_index_are_refused():
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


def test_json_list_json_data_object_json_lines_and_tables_give_the_same_examples(tmp_path: Path, objective: str):
    rows = records(objective, 6)
    whole = write(tmp_path / "list.json", json.dumps(rows, indent=1))
    nested = write(tmp_path / "nested.json", json.dumps({"version": 1, "data": rows}))
    lines = write(tmp_path / "lines.json", *map(json.dumps, rows))
    one = write(tmp_path / "one.json", json.dumps(rows[0]))
    marked = tmp_path / "marked.jsonl"
    marked.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    tables = [write_table(tmp_path / "data.csv", rows), write_table(tmp_path / "data.tsv", rows, "\t")]
    expected = taken(rows, objective)
    for source in (whole, nested, lines, marked, *tables):
        assert taken(source, objective) == expected, source.name
    assert taken(one, objective) == taken(rows[:1], objective)


def test_a_cell_of_messages_is_read_and_a_text_that_looks_like_json_stays_text(tmp_path: Path):
    assert taken(write_table(tmp_path / "chat.csv", [MESSAGES]), "dpo") == taken([MESSAGES], "dpo")
    row = {"prompt": "[1, 2]", "chosen": '{"a": 1}', "rejected": "line one\nline two"}
    ((where, record),) = read_records(write_table(tmp_path / "data.csv", [row]))
    assert record == row
    assert where.endswith("data.csv, line 2")


@pytest.mark.parametrize("label", ["true", "True", "1", "1.0"])
def test_a_label_in_a_cell_may_be_spelt_in_several_ways(tmp_path: Path, label: str):
    path = write(tmp_path / "data.csv", "prompt,completion,label", f"w1, w2,{label}", "w1, w2,false", "w1, w2,0")
    assert [example.weight for example in prepared(path, "kto").examples] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "lines", "said"),
    [
        (
            "data.csv",
            ["prompt,chosen,rejected", '"a\nb",c,d', "a,b"],
            "line 4: expected 3 cells, as the header has, got 2",
        ),
        ("data.csv", ["prompt,chosen,rejected", "a,b,c", '"a,b,c'], "line 3: expected rows of ','-separated cells"),
        ("data.csv", ["prompt,prompt,rejected", "a,b,c"], "line 1: expected a header of distinct column names"),
        ("data.csv", ["prompt,completions,rewards", "a,[b,1"], "line 2: completions: expected JSON"),
        (
            "data.csv",
            ["prompt,chosen,rejected", "\"[{'role': 'user', 'content': 'a'}]\",b,c"],
            "line 2: prompt: expected JSON, got \"[{'role'",
        ),
        ("data.csv", ["prompt,completion,label", "a,b,"], "line 2: lacks 'label'"),
        ("data.json", ['[{"prompt": "a",', "}]"], "data.json: expected a JSON list of objects: "),
        (
            "data.json",
            ['[{"prompt": "a", "chosen": "b", "rejected": "c"}, 3]'],
            "data.json, example 1: expected an obj",
        ),
        ("data.parquet", ["no such thing"], "data.parquet: expected a Parquet file"),
        ("data.txt", ["a"], "expected a file that ends in .jsonl, .ndjson, .json, .csv, .tsv, .parquet, got "),
    ],
)
def test_an_error_in_a_file_is_reported_with_its_place(tmp_path: Path, name: str, lines: list[str], said: str):
    objective = {"label": "kto", "rewards": "grpo"}.get(lines[0].split(",")[-1], "dpo")
    with pytest.raises(ValueError, match=name) as caught:
        prepared(write(tmp_path / name, *lines), objective)
    assert said in str(caught.value)


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path):
    (tmp_path / "data.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(ValueError, match=r"data.jsonl, line 1: expected UTF-8 text, got the byte 0xe9 at character 12"):
        prepared(tmp_path / "data.jsonl")


def test_a_cell_may_be_longer_than_the_csv_modules_limit(tmp_path: Path):
    path = write_table(tmp_path / "data.csv", [PAIR | {"prompt": "w1 " * 50_000}])
    ((_, record),) = read_records(path)
    assert len(record["prompt"]) == 150_000


def test_a_folder_of_data_files_is_read_by_split(tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "train.jsonl", json.dumps(PAIR))
    write(folder / "test.jsonl", json.dumps(PAIR), json.dumps(PAIR))
    assert len(prepared(folder).examples) == 1
    assert len(prepared(folder, split="test").examples) == 2


def test_a_dictionary_of_splits_in_memory_is_read_by_split():
    splits = DatasetDict({"train": Dataset.from_list([PAIR]), "test": Dataset.from_list([PAIR, PAIR])})
    assert len(prepared(splits, split="test").examples) == 2


def test_a_name_may_have_a_configuration_and_a_failed_load_gives_the_reason(
    monkeypatch: pytest.MonkeyPatch,
):
    asked = []

    def load(name: str, config: str | None) -> DatasetDict:
        asked.append((name, config))
        if name == "org/absent":
            raise ConnectionError("Couldn't reach it\nand a long story")
        return DatasetDict({"train": Dataset.from_list([PAIR])})

    monkeypatch.setattr(sources, "load_dataset", load)
    for name in ("org/name", "org/name:hard"):
        assert len(prepared(name).examples) == 1
    assert asked == [("org/name", None), ("org/name", "hard")]
    with pytest.raises(
        ValueError, match=r"got 'org/absent': no file or folder .*; datasets.load_dataset: Conn"
    ) as caught:
        prepared("org/absent")
    assert str(caught.value).endswith("ConnectionError: Couldn't reach it")


def test_a_path_is_not_looked_up_on_the_hub(tmp_path: Path):
    with pytest.raises(ValueError, match=r"expected a file or a folder at .*nowhere, found none"):
        prepared(tmp_path / "nowhere")


# Arrow's tables


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


def arrow_sources(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    dataset = Dataset.from_list(rows)
    dataset.to_parquet(folder / "data.parquet")
    dataset.save_to_disk(folder / "saved")
    (folder / "shards").mkdir()
    dataset.to_parquet(folder / "shards" / "train-0.parquet")
    as_json = Dataset.from_list(rows, on_mixed_types="use_json")
    as_json.to_parquet(folder / "json.parquet")
    return {
        "Parquet": folder / "data.parquet",
        "Dataset": dataset,
        "selected": Dataset.from_list([*rows, rows[0]]).select(range(len(rows))),
        "saved": folder / "saved",
        "folder": folder / "shards",
        "JSON columns": as_json,
        "JSON columns in Parquet": folder / "json.parquet",
        "transform": dataset.with_transform(lambda batch: batch),
    }


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


# Caches


def test_a_replaced_file_of_the_same_time_is_read_again(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    for name in ("data.parquet", "folder/train.parquet", "folder/train.jsonl"):
        path = tmp_path / name
        for chosen in (" w3", " w7"):
            if path.suffix == ".jsonl":
                write(path, json.dumps(PAIR | {"chosen": chosen}))
            else:
                Dataset.from_list([PAIR | {"chosen": chosen}]).to_parquet(path)
            os.utime(path, (1_700_000_000, 1_700_000_000))
            source = path if path.parent == tmp_path else path.parent
            assert [record["chosen"] for _, record in read_records(source)] == [chosen], name
        path.unlink()


def test_a_folder_that_datasets_has_to_read_is_read_without_a_shared_cache(tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "README.md", "---", "configs:", "- config_name: default", "  data_files: b.jsonl", "---", "# Pairs")
    write(folder / "a.jsonl", json.dumps(PAIR))
    for chosen in (" w3", " w7"):
        path = write(folder / "b.jsonl", json.dumps(PAIR | {"chosen": chosen}))
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert [record["chosen"] for _, record in read_records(folder)] == [chosen]


def test_local_data_are_read_without_a_home_and_a_hub_name_is_told_which_folder_to_set(tmp_path: Path):
    sources = arrow_sources(tmp_path, [PAIR])
    paths = [source for source in sources.values() if isinstance(source, Path)]
    paths += [write(tmp_path / "data.jsonl", json.dumps(PAIR)), write_table(tmp_path / "data.csv", [PAIR])]
    paths.append(tmp_path / "card")
    paths[-1].mkdir()
    write(paths[-1] / "README.md", "---", "configs:", "- config_name: default", "  data_files: '*.jsonl'", "---")
    write(paths[-1] / "part.jsonl", json.dumps(PAIR))
    code = (
        "import sys\nfrom humanline_fused.training.data.reading.sources import read_records\n"
        "for path in sys.argv[1:]:\n    print([record for _, record in read_records(path)])\n"
        "try:\n    list(read_records('org/absent'))\nexcept ValueError as error:\n    print(error)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))} | {"HF_HUB_OFFLINE": "1"}
    environment |= {"HOME": "/dev/null/x", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    *rows, last = ran.stdout.splitlines()
    assert rows == [str([PAIR])] * len(paths), ran.stderr
    assert last.startswith(
        f"org/absent: no file or folder of that name in {ROOT}, and the cache of datasets cannot be "
    )
    assert "written ([Errno 20] Not a directory: '/dev/null/x" in last
    assert "set HF_HOME (or HF_DATASETS_CACHE and HF_HUB_CACHE) to a folder that can" in last


@pytest.mark.parametrize("variable", ["HF_DATASETS_CACHE", "HF_HUB_CACHE"])
def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, variable: str):
    def load(*_: Any) -> DatasetDict:
        raise OSError(30, "Read-only file system", "somewhere")

    monkeypatch.setattr(sources, "load_dataset", load)
    monkeypatch.setattr(sources.config if variable == "HF_DATASETS_CACHE" else constants, variable, "/dev/null/x")
    with pytest.raises(
        ValueError, match=r"^org/name: .*, and the cache of datasets cannot be written .*'/dev/null/x'"
    ) as caught:
        list(read_records("org/name"))
    assert str(caught.value).endswith("to a folder that can; OSError: [Errno 30] Read-only file system: 'somewhere'")


# Folders


LAYOUTS = {
    "one file": ["pairs.jsonl"],
    "names": ["train.jsonl", "test.jsonl", "dev.jsonl"],
    "parts of names": ["pairs_train.jsonl", "pairs-eval-2.jsonl", "more/validation_1.jsonl"],
    "folders": ["train/a.jsonl", "train/b.jsonl", "val/a.jsonl", "other/c.jsonl"],
    "folders that match twice": ["my_train/train-1/a.jsonl", "testing/a.jsonl"],
    "shards": ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/hard-00000-of-00001.jsonl"],
    "hidden files": ["a.jsonl", ".b.jsonl", "__c__/c.jsonl", ".d/d.jsonl"],
    "other files": ["a.jsonl", "b.json", "README.md", "config.json", "notes.txt"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_has_the_splits_of_load_dataset(tmp_path: Path, layout: str):
    folder = tmp_path / "folder"
    for number, name in enumerate(LAYOUTS[layout]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, json.dumps({"prompt": f"w{number}"}))
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded, DatasetDict)
    for split in loaded:
        prompts = [record["prompt"] for _, record in read_records(folder, str(split))]
        assert prompts == list(dict.fromkeys(loaded[split]["prompt"])), split
    with pytest.raises(ValueError, match="expected a split 'absent', it has ") as caught:
        list(read_records(folder, "absent"))
    assert str(caught.value).endswith(str(sorted(map(str, loaded))))


def test_the_name_of_a_folder_is_no_pattern(tmp_path: Path):
    folder = tmp_path / "pairs [1] *?"
    folder.mkdir()
    write(folder / "train.jsonl", json.dumps(PAIR))
    assert [record for _, record in read_records(folder)] == [PAIR]


def test_a_row_of_a_folder_has_its_file_and_line(tmp_path: Path):
    write(tmp_path / "a.jsonl", json.dumps(PAIR))
    write(tmp_path / "b.jsonl", "", json.dumps(PAIR), "{")
    assert [where for where, _ in read_rows(tmp_path)] == [
        f"{tmp_path}/a.jsonl, line 1",
        f"{tmp_path}/b.jsonl, line 2",
        f"{tmp_path}/b.jsonl, line 3",
    ]


def test_a_folder_of_several_formats_is_refused(tmp_path: Path):
    write(tmp_path / "a.jsonl", json.dumps(PAIR))
    write_table(tmp_path / "b.csv", [PAIR])
    with pytest.raises(ValueError, match=r"expected data files of one format, got a\.jsonl, b\.csv: name one file"):
        list(read_rows(tmp_path))


def test_a_folder_without_data_says_so(tmp_path: Path):
    with pytest.raises(ValueError, match=r"a folder; datasets\.load_dataset: EmptyDatasetError: .* any data files"):
        list(read_rows(tmp_path))
    write(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match=r"expected at least one row, got none: its files have no data"):
        list(read_rows(tmp_path))


# Rows of another type


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
