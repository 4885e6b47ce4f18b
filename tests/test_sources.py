"""All kinds of source give the same rows, and errors name the file and line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import constants

from humanline_fused.training.data.reading import sources
from humanline_fused.training.data.reading.sources import first_row, read_records
from tests.data_files import MESSAGES, PAIR, arrow_sources, prepared, taken, write, write_table
from tests.tiny_model import records

ROOT = Path(__file__).parent.parent


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
        (
            "grpo",
            '{"prompt": "w1", "completions": ["w2", "w3"], "rewards": [true, false]}',
            "one a completion, got [True, False]: write 1 for true and 0 for false",
        ),
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


def test_the_first_row_is_read_only_where_it_does_not_cost_as_much_as_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, listed = tmp_path / "folder", tmp_path / "pairs.json"
    folder.mkdir()
    with pytest.raises(
        ValueError, match=r"expected a file, a folder or the name of a dataset, .*load_dataset: EmptyData"
    ):
        first_row(folder)
    write(folder / "README.md", "---", "configs:", "- config_name: default", "  data_files: b.jsonl", "---", "# Pairs")
    write(folder / "b.jsonl", json.dumps(PAIR))
    monkeypatch.setattr(sources, "load_dataset", None)
    assert first_row(folder) is None
    listed.write_text(json.dumps([PAIR]))
    assert first_row(listed) == (f"{listed}, example 0", PAIR)
    monkeypatch.setattr(sources, "LONG", 8)
    assert first_row(listed) is None
    assert first_row([PAIR]) == ("dataset, example 0", PAIR)


def test_local_data_are_read_without_a_home_and_a_hub_name_is_told_which_folder_to_set(tmp_path: Path):
    sources = arrow_sources(tmp_path, [PAIR])
    paths = [source for source in sources.values() if isinstance(source, Path)]
    paths += [write(tmp_path / "data.jsonl", json.dumps(PAIR)), write_table(tmp_path / "data.csv", [PAIR])]
    paths.append(tmp_path / "card")
    paths[-1].mkdir()
    write(paths[-1] / "README.md", "---", "configs:", "- config_name: default", "  data_files: '*.jsonl'", "---")
    write(paths[-1] / "part.jsonl", json.dumps(PAIR))
    code = (
        "import sys\nfrom importlib.util import find_spec, module_from_spec\n"
        "package = find_spec('humanline_fused.training')\n"
        "sys.modules[package.name] = module_from_spec(package)\n"  # without the trainer that it imports
        "from humanline_fused.training.data.reading.sources import read_records\n"
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
