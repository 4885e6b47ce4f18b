"""Sources of records: files, folders, names of datasets, and data in memory."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, cast

from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    config,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)

from humanline_fused.places import did_you_mean
from humanline_fused.training.data.reading.arrow import BATCH, arrow_records, without_nulls
from humanline_fused.training.data.reading.files import READERS, Rows, format_of, read_file
from humanline_fused.training.data.reading.folders import files_by_split
from humanline_fused.training.data.reading.plain import plain

LONG = 1 << 26
"""Bytes of a .json file that take a good part of a second to parse."""


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
    rows = _rows_at(str(source), split) if isinstance(source, str | Path) else _rows_of(source, split, "dataset")
    for where, record in rows:
        try:
            yield where, record if isinstance(record, ValueError) else plain(record)
        except ValueError as error:
            yield where, ValueError(f"{where}: {error}")


def first_row(source: Any, split: str = "train") -> tuple[str, Any] | None:
    """Return the first of :func:`read_rows`; None if there is none, or if it costs as much as all of them.

    A folder that ``load_dataset`` converts is only looked up, and a long .json file is parsed as a whole.
    """
    path = Path(source) if isinstance(source, str | Path) else None
    if path and path.is_dir() and not _is_saved(path):
        splits = files_by_split(path)
        if not splits:
            with tempfile.TemporaryDirectory() as cache, _failures(str(path), "a folder", "load_dataset"):
                load_dataset_builder(str(path), cache_dir=cache)
            return None
        path = splits.get(split, [path])[0]
    if path and format_of(path) == ".json" and path.is_file() and path.stat().st_size > LONG:
        return None
    return next(read_rows(source, split), None)


def _rows_at(name: str, split: str) -> Rows:
    """Yield the rows of a file, a folder, or a dataset with a name."""
    path = Path(name)
    if format_of(path) and not path.is_dir():
        empty = path.is_file() and not path.stat().st_size
        yield from _some(read_file(path), name, "the file is empty" if empty else "the file has no data")
    elif path.is_file():
        raise ValueError(f"dataset: expected a file that ends in {', '.join(READERS)}, got {path}")
    elif path.is_dir():
        yield from _rows_in(path, split)
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(f"dataset: expected a file or a folder at {path}, found none{did_you_mean(path, Path.exists)}")
    else:
        name_alone, _, configuration = name.partition(":")
        nothing_here = f"no file or folder of that name in {Path.cwd()}"
        with _failures(name, nothing_here, "load_dataset", in_cache=True):
            dataset = load_dataset(name_alone, configuration or None)
        yield from _rows_of(dataset, split, name)


def _rows_in(folder: Path, split: str) -> Rows:
    """Yield the rows of a folder: saved by ``datasets``, of files that have a reader, or any other."""
    if _is_saved(folder):
        with _failures(str(folder), "a folder", "load_from_disk"):
            dataset = load_from_disk(str(folder))
        yield from _rows_of(dataset, split, str(folder))
    elif splits := files_by_split(folder):
        files = _split_of(splits, split, str(folder))
        rows = chain.from_iterable(map(read_file, files))
        yield from _some(rows, str(folder), "its files have no data")
    else:
        with tempfile.TemporaryDirectory() as cache:  # a shared cache may hold what the folder held before
            with _failures(str(folder), "a folder", "load_dataset"):
                dataset = load_dataset(str(folder), cache_dir=cache)
            yield from _rows_of(dataset, split, str(folder))


def _is_saved(folder: Path) -> bool:
    """Return True for a folder that ``datasets`` saved."""
    return any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _some(rows: Rows, name: str, why: str) -> Rows:
    """Yield the rows.

    Raises:
        ValueError: there is none.
    """
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{name}: expected at least one row, got none: {why}")
    yield first
    yield from rows


def _rows_of(source: Any, split: str, name: str) -> Rows:
    """Yield the rows of data in memory, or of those that ``datasets`` has loaded."""
    if isinstance(source, DatasetDict):
        source = _split_of(source, split, name)
    streams = IterableDataset | IterableDatasetDict | str | bytes
    if isinstance(source, streams) or not isinstance(source, Dataset | Sequence):
        raise TypeError(
            "expected data that can be read by index (a file, a datasets.Dataset, a list), because the coming batches "
            f"are seen ahead, got {type(source).__name__}"
        )
    for index, record in enumerate(_records_of(source) if isinstance(source, Dataset) else source):
        where = f"{name}, example {index}"
        yield where, ValueError(f"{where}: {record}") if isinstance(record, ValueError) else record


def _records_of(dataset: Dataset) -> Iterable[Any]:
    """Return the records of a dataset without its format (torch, numpy, pandas …). A transform is applied."""
    if dataset.format["type"] == "custom":
        records = cast(Iterable[dict[str, Any]], dataset)
        return ({name: without_nulls(value) for name, value in record.items()} for record in records)
    return arrow_records(dataset.with_format("arrow").iter(BATCH))


def _split_of(splits: Mapping[Any, Any], split: str, name: str) -> Any:
    if split not in splits:
        raise ValueError(f"{name}: expected a split {split!r}, it has {sorted(map(str, splits))}")
    return splits[split]


@contextmanager
def _failures(name: str, found: str, tried: str, in_cache: bool = False) -> Iterator[None]:
    """Convert errors of ``datasets`` to a ValueError: each storage and the hub raise their own types.

    Args:
        name: the source.
        found: the local file or folder of that name, as text.
        tried: the function of ``datasets``.
        in_cache: the function needs the shared caches.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        if unwritable := in_cache and _unwritable_cache():
            raise ValueError(
                f"{name}: {found}, and the cache of datasets cannot be written ({unwritable}): set HF_HOME (or "
                f"HF_DATASETS_CACHE and HF_HUB_CACHE) to a folder that can; {type(error).__name__}: {reason}"
            ) from None
        raise ValueError(
            f"dataset: expected a file, a folder or the name of a dataset, got {name!r}: {found}; "
            f"datasets.{tried}: {type(error).__name__}: {reason}"
        ) from None


def _unwritable_cache() -> str:
    """Return why the caches of ``datasets`` and of the hub cannot be written; empty if they can."""
    from huggingface_hub import constants

    for folder in (config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            return str(error)
    return ""
