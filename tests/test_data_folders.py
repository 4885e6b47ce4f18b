"""A folder of data files has the splits and rows that datasets gives it."""

import json
from pathlib import Path

import pytest
from datasets import DatasetDict, load_dataset

from humanline_fused.training.data.reading.sources import read_records, read_rows
from tests.data_files import PAIR, write, write_table

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
