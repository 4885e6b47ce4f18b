"""Records of Arrow tables, as they were before Arrow gave every struct the keys of all others."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from humanline_fused.training.data.reading.exact_json import parse

BATCH = 1000
"""Rows that are converted together."""

Converter = Callable[[Any], Any]


def arrow_records(tables: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[Any]:
    """Yield the rows of tables of one schema as dictionaries.

    A key of a struct whose value is null is left out: Arrow fills it in for every row that did not have the key.
    Columns and elements of lists may be None. Text of Arrow's JSON type is parsed, with its nulls.

    Yields:
        A record, or the ValueError of one whose JSON cannot be parsed.

    >>> tools = pa.array([[{"name": "look", "where": {}}, {"name": "paint", "tint": "red"}]])
    >>> next(arrow_records([pa.table({"tools": tools})]))
    {'tools': [{'name': 'look', 'where': {}}, {'name': 'paint', 'tint': 'red'}]}
    """
    for table in tables:
        converters = {field.name: _converter(field.type) for field in table.schema}
        for record in table.to_pylist():
            try:
                yield {
                    name: convert(value) if (convert := converters[name]) else value for name, value in record.items()
                }
            except ValueError as error:
                yield error


def without_nulls(value: Any) -> Any:
    """Return a value without the keys, at any depth below it, whose value is None."""
    if isinstance(value, Mapping):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _converter(kind: pa.DataType) -> Converter | None:
    """Return the function that converts values of an Arrow type; None if they stay as they are."""
    if isinstance(kind, pa.JsonType):
        return lambda text: None if text is None else parse(text)
    if pa.types.is_struct(kind):
        return _struct({field.name: _converter(field.type) for field in kind})
    if pa.types.is_map(kind):
        item = _converter(kind.item_type) or (lambda value: value)
        return lambda pairs: None if pairs is None else {key: item(value) for key, value in pairs}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        element = _converter(kind.value_type)
        return element and (lambda items: None if items is None else [element(item) for item in items])
    return None


def _struct(converters: Mapping[str, Converter | None]) -> Converter:
    def convert(struct: Any) -> Any:
        if struct is None:
            return None
        present = ((name, value) for name, value in struct.items() if value is not None)
        return {name: inner(value) if (inner := converters[name]) else value for name, value in present}

    return convert
