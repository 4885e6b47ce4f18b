"""Readers of files: JSONL, JSON, CSV, TSV and Parquet. No reader has a cache."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from humanline_fused.places import did_you_mean
from humanline_fused.training.data.reading.arrow import BATCH, arrow_records
from humanline_fused.training.data.reading.delimited import read_csv, read_tsv
from humanline_fused.training.data.reading.exact_json import parse
from humanline_fused.training.data.reading.lines import leftover, lines

Rows = Iterator[tuple[str, Any]]
"""Pairs of a record's place, as text, and the record, or the ValueError for a row that cannot be read."""


def format_of(path: Path) -> str:
    """Return the ending that names a file's format, in lower case; empty if there is no reader for it.

    >>> format_of(Path("pairs.JSONL.gz")), format_of(Path("pairs.parquet.gz")), format_of(Path("notes.txt"))
    ('.jsonl', '', '')
    """
    name = Path(path.name.lower())
    inner = Path(name.stem).suffix if name.suffix == ".gz" else name.suffix
    return inner if inner in READERS and (name.suffix != ".gz" or inner != ".parquet") else ""


def read_file(path: Path) -> Rows:
    """Yield the rows of a file that has a reader.

    Raises:
        ValueError: the file is missing, or not in the format of its ending.
    """
    ending = format_of(path)
    if not path.is_file():
        kind = ending[1:].upper().replace("NDJSON", "JSONL")
        raise ValueError(f"dataset: expected a {kind} file at {path}, found none{did_you_mean(path, Path.exists)}")
    yield from READERS[ending](path)


def _read_jsonl(path: Path) -> Rows:
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, _row(where, parse(line))
        except ValueError as error:
            reason = leftover(line) or _spread(line) or error
            said = f"{where}: expected one JSON object per line, got {line.strip()[:80]!r}: {reason}"
            yield where, ValueError(said)


def _spread(line: str) -> str:
    """Return the cause if a line is the beginning of a value that has several lines."""
    start = line.strip()
    if start.startswith("["):
        return "a JSON list is for a .json file"
    return "an object on several lines: write it on one, or a list of objects to a .json file" if start == "{" else ""


def _read_json(path: Path) -> Rows:
    text = "".join(lines(path))
    if not text.strip():
        return
    try:
        content = parse(text)
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise ValueError(f"{path}: expected a JSON list of objects: {error}") from None
        yield from _read_jsonl(path)
        return
    if isinstance(content, Mapping) and isinstance(content.get("data"), list) and not _is_split(content):
        content = content["data"]
    for index, record in enumerate(content if isinstance(content, list) else [content]):
        where = f"{path}, example {index}"
        yield where, _row(where, record)


def _row(where: str, value: Any) -> Any:
    """Return a record, or the error for an object that holds whole columns."""
    if isinstance(value, Mapping) and (_is_columns(value) or _is_numbered(value) or _is_split(value)):
        return ValueError(
            f"{where}: expected one object per row, got whole columns, {str(value)[:80]!r}: write rows (in pandas "
            'to_json(orient="records"))'
        )
    return value


def _is_columns(value: Mapping[str, Any]) -> bool:
    """Return True for lists of one length, one per column. In a row a list holds messages, or stands beside a text."""
    columns = list(value.values())
    if not columns or not all(isinstance(column, list) and 0 < len(column) == len(columns[0]) for column in columns):
        return False
    return not any(isinstance(item, Mapping) for column in columns for item in column)


def _is_numbered(value: Mapping[str, Any]) -> bool:
    """Return True for objects with the keys "0", "1" …, one per column, or for rows under such keys."""
    if not value or not all(isinstance(item, Mapping) and item for item in value.values()):
        return False
    return all(key.isdecimal() for key in value) or all(key.isdecimal() for item in value.values() for key in item)


def _is_split(value: Mapping[str, Any]) -> bool:
    """Return True for pandas' orient="split"."""
    return {"columns", "index", "data"} == set(value)


def _read_parquet(path: Path) -> Rows:
    try:
        with path.open("rb") as file:  # pyarrow's own opening refuses a path that is not UTF-8
            for index, record in enumerate(arrow_records(ParquetFile(file).iter_batches(BATCH))):
                where = f"{path}, example {index}"
                yield where, ValueError(f"{where}: {record}") if isinstance(record, ValueError) else record
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: expected a Parquet file: {reason}") from None


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": _read_parquet,
}
