"""Sources of records: files, datasets by folder or name, and data in memory."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset, load_from_disk

Rows = Iterator[tuple[str, Any]]
"""Pairs of a record's place, as text, and the record, or the ValueError for a row that cannot be read."""

JSON_CELLS = ("completions", "rewards", "tools", "chat_template_kwargs")
MESSAGE_CELLS = ("prompt", "chosen", "rejected", "completion")
MESSAGES = re.compile(r"\s*\[\s*\{\s*['\"](role|content)['\"]\s*:")


def read_records(source: Any, split: str = "train") -> Rows:
    """Yield each record with its place as text.

    Args:
        source: a JSONL, JSON, CSV, TSV or Parquet file; a folder saved by ``datasets``, or a folder of data files; the
            name of a dataset, or ``name:config``; a ``Dataset`` or ``DatasetDict``; a sequence of mappings.
        split: the split of a source that has several.

    Raises:
        TypeError: the source cannot be read by index, so the coming batches cannot be read ahead.
        ValueError: the source does not exist, or a row cannot be parsed (with file and line number).
    """
    for where, record in read_rows(source, split):
        if isinstance(record, ValueError):
            raise record
        yield where, record


def read_rows(source: Any, split: str = "train") -> Rows:
    """Yield rows as :func:`read_records`, but continue after a row that cannot be parsed: its record is the error."""
    name = "dataset"
    if isinstance(source, str | Path):
        name, path = str(source), Path(source)
        if path.suffix in READERS and not path.is_dir():
            if not path.is_file():
                kind = path.suffix[1:].upper().replace("NDJSON", "JSONL")
                raise ValueError(f"dataset: expected a {kind} file at {path}, found none")
            yield from READERS[path.suffix](path)
            return
        source = _load(name)
    if isinstance(source, DatasetDict):
        if split not in source:
            raise ValueError(f"{name}: expected a split {split!r}, it has {sorted(map(str, source))}")
        source = source[split]
    streams = IterableDataset | IterableDatasetDict | str
    if isinstance(source, streams) or not isinstance(source, Dataset | Sequence):
        raise TypeError(
            "expected data that can be read by index (a file, a datasets.Dataset, a list), because the coming batches "
            f"are seen ahead, got {type(source).__name__}"
        )
    for index, record in enumerate(source):
        yield f"{name}, example {index}", record


def _load(name: str) -> Any:
    path = Path(name)
    if path.is_file():
        raise ValueError(f"dataset: expected a file that ends in {', '.join(READERS)}, got {path}")
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise ValueError(f"dataset: expected a file or a folder at {path}, found none")
    saved = path.is_dir() and any((path / file).is_file() for file in ("state.json", "dataset_dict.json"))
    name, _, config = (name, "", "") if path.is_dir() else name.partition(":")
    tried = "load_from_disk" if saved else "load_dataset"
    try:
        return load_from_disk(name) if saved else load_dataset(name, config or None)
    except Exception as error:  # each storage and the hub raise their own types
        reason = (str(error).strip().splitlines() or [""])[0]
        found = "a folder" if path.is_dir() else f"no file or folder of that name in {Path.cwd()}"
        raise ValueError(
            f"dataset: expected a file, a folder or the name of a dataset, got {str(path)!r}: {found}; "
            f"datasets.{tried}: {type(error).__name__}: {reason}"
        ) from None


def _lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, line in enumerate(file, 1):  # noqa: B007
                yield line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number + 1} or later: expected UTF-8 text: {error}") from None


def _read_jsonl(path: Path) -> Rows:
    for number, line in enumerate(_lines(path), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            yield where, json.loads(line)
        except ValueError as error:
            said = f"{where}: expected one JSON object per line, got {line.strip()[:80]!r}: {error}"
            yield where, ValueError(said)


def _read_json(path: Path) -> Rows:
    text = "".join(_lines(path))
    try:
        content = json.loads(text)
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise ValueError(f"{path}: expected a JSON list of objects: {error}") from None
        yield from _read_jsonl(path)
        return
    if isinstance(content, Mapping) and isinstance(content.get("data"), list):
        content = content["data"]
    for index, record in enumerate(content if isinstance(content, list) else [content]):
        yield f"{path}, example {index}", record


def _read_table(path: Path, delimiter: str) -> Rows:
    csv.field_size_limit(2**31 - 1)  # long conversations exceed the default of 128 KiB
    table = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        where = f"{path}, line {table.line_num + 1}"
        try:
            cells = next(table, None)
        except csv.Error as error:
            raise ValueError(f"{where}: expected rows of {delimiter!r}-separated cells: {error}") from None
        if cells is None:
            return
        if not cells:
            continue
        if not header:
            header = cells
            if len(set(header)) < len(header):
                raise ValueError(f"{where}: expected a header of distinct column names, got {header}")
        elif len(cells) != len(header):
            yield where, ValueError(f"{where}: expected {len(header)} cells, as the header has, got {len(cells)}")
        else:
            try:
                record = {name: _value(name, cell) for name, cell in zip(header, cells, strict=True)}
            except ValueError as error:
                record = ValueError(f"{where}: {error}")
            yield where, record


def _value(column: str, cell: str) -> Any:
    """Return the value of a cell. In text columns JSON stays text, unless it is a list of messages."""
    if column in (*JSON_CELLS, "label") and not cell.strip():
        return None
    if (column in JSON_CELLS and cell.strip()[0] in "[{") or (column in MESSAGE_CELLS and MESSAGES.match(cell)):
        try:
            return json.loads(cell)
        except ValueError as error:
            raise ValueError(f"{column}: expected JSON, got {cell.strip()[:80]!r}: {error}") from None
    return cell


def _read_csv(path: Path) -> Rows:
    return _read_table(path, ",")


def _read_tsv(path: Path) -> Rows:
    return _read_table(path, "\t")


def _read_parquet(path: Path) -> Rows:
    try:
        table = load_dataset("parquet", data_files=str(path), split="train")
    except Exception as error:  # pyarrow's error, wrapped by datasets
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"{path}: expected a Parquet file: {reason}") from None
    for index, record in enumerate(table):
        yield f"{path}, example {index}", record


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
