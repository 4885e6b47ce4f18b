"""The file format of everything that is measured, and its one reader and writer.

A file holds facts as ``# name: value`` lines (machine, versions, commit, command, whose code ran), then a CSV table of
one kind of row. A kind is a dataclass whose fields are the columns: text, a number, an empty cell for None, or numbers
with spaces between them for a list or tuple. A column that a file lacks has the field's default.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"

Facts = dict[str, str]
Kind = TypeVar("Kind")


def write(path: Path, kind: type[Any], facts: Facts, rows: Sequence[Any] = ()) -> None:
    """All at once: an interrupted command leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("w", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in facts.items())
        table = csv.DictWriter(file, [field.name for field in fields(kind)], lineterminator="\n")
        table.writeheader()
        table.writerows(map(cells, rows))
    unfinished.replace(path)


def read(path: Path, kind: type[Kind]) -> tuple[Facts, list[Kind]]:
    facts, lines = _split(path)
    hints, (names, *table) = get_type_hints(kind), csv.reader(lines)
    columns = [(name, _reader(hints[name])) for name in names]
    rows = [
        kind(**{name: value(cell) for (name, value), cell in zip(columns, row, strict=True)}) for row in table if row
    ]
    return facts, rows


def cells(row: Any) -> dict[str, str]:
    return {name: _cell(value) for name, value in asdict(row).items()}


def first_column(path: Path) -> str:
    """Its name tells the kinds of rows apart."""
    return _split(path)[1][0].split(",")[0]


def agrees(path: Path, facts: Facts, names: Sequence[str]) -> bool:
    """Whether a file is there whose facts of these names are the same, so that rows may be added to it."""
    if not path.is_file():
        return False
    known = _split(path)[0]
    return all(known.get(name) == facts[name] for name in names)


def _split(path: Path) -> tuple[Facts, list[str]]:
    lines = path.read_text().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return facts, [line for line in lines if not line.startswith("# ")]


def _cell(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else str(value)


def _reader(hint: Any) -> Callable[[str], Any]:
    """Return the function that makes a cell of a column its value."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (list, tuple):
        return lambda cell: kind(map(arguments[0], cell.split()))
    if type(None) in arguments:
        value = _reader(arguments[0])
        return lambda cell: value(cell) if cell else None
    return hint
