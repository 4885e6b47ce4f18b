"""Tables of cells, CSV and TSV: the header names the columns."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from humanline_fused.training.data.reading.exact_json import parse
from humanline_fused.training.data.reading.lines import leftover, lines

JSON_CELLS = ("completions", "rewards", "tools", "chat_template_kwargs")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_csv(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a file of comma-separated cells, as
    :data:`~humanline_fused.training.data.reading.files.Rows`.
    """
    return _read_cells(path, ",")


def read_tsv(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a file of tab-separated cells."""
    return _read_cells(path, "\t")


def _read_cells(path: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # long conversations exceed the default of 128 KiB
    table = csv.reader(_checked_lines(path, delimiter), delimiter=delimiter, strict=True)
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
            if spaced := [name for name in header if name != name.strip()]:
                raise ValueError(f"{where}: expected column names without white space around them, got {spaced}")
        else:
            yield where, _record(where, header, cells)


def _checked_lines(path: Path, delimiter: str) -> Iterator[str]:
    """Yield the lines of a file whose header has the delimiter."""
    header = True
    for number, line in enumerate(lines(path), 1):
        if header and line.strip():
            header = False
            _check_header(f"{path}, line {number}", line.strip("\r\n"), delimiter)
        yield line


def _check_header(where: str, line: str, delimiter: str) -> None:
    expected = f"{where}: expected a header of column names separated by {DELIMITERS[delimiter]}"
    if line.lower().startswith("sep="):
        raise ValueError(f"{expected}, got {line!r}, which only Excel reads: delete this line")
    others = [other for other in DELIMITERS if other != delimiter and other in line]
    if delimiter not in line and others:
        raise ValueError(
            f"{expected}, got {line!r:.80}, separated by {DELIMITERS[others[0]]}: save the table as CSV with "
            "commas, or as TSV with tabs"
        )


def _record(where: str, header: list[str], cells: list[str]) -> Any:
    if len(cells) != len(header):
        cause = leftover("".join(cells))
        got = f"{len(cells)}" + (f", {cause}" if cause else "")
        return ValueError(f"{where}: expected {len(header)} cells, as the header has, got {got}")
    try:
        return {name: _value(name, cell) for name, cell in zip(header, cells, strict=True)}
    except ValueError as error:
        return ValueError(f"{where}: {error}")


def _value(column: str, cell: str) -> Any:
    """Return the value of a cell. In text columns JSON stays text."""
    if "\0" in cell:
        raise ValueError(f"{column}: expected text, got a NUL at character {cell.index(chr(0))}")
    if column in (*JSON_CELLS, "label") and not cell.strip():
        return None
    if column in JSON_CELLS and cell.strip()[0] in "[{":
        try:
            return parse(cell)
        except ValueError as error:
            raise ValueError(f"{column}: expected JSON, got {cell.strip()[:80]!r}: {error}") from None
    return cell
