"""Rows of data, files of them, and the examples that are made of them."""

import csv
import json
from pathlib import Path
from typing import Any

from datasets import Dataset

from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.objectives import find_objective
from tests.tiny_model import tiny_tokenizer

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


def arrow_sources(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the same rows as every source that Arrow holds, by name; write the files into a folder."""
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


def taken(source: Any, objective: str, **settings: Any) -> list[tuple[Any, ...]]:
    examples = prepared(source, objective, **settings).examples
    return [(e.prompt_ids.tolist(), [c.tolist() for c in e.completions], e.weight, e.reward) for e in examples]
