"""Rows of an experiment that takes long, kept as they come, so that an interrupted command goes on where it stopped."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from benchmarks.results import Facts, agrees, read, write

Kind = TypeVar("Kind")


@dataclass
class Unfinished(Generic[Kind]):
    """The rows so far, in a file beside the results.

    Attributes:
        file: where; None keeps them in memory.
        kind: class of the rows.
        facts: rows of a file with other facts are not taken up.
    """

    file: Path | None
    kind: type[Kind]
    facts: Facts
    rows: list[Kind] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.file and agrees(self.file, self.facts, tuple(self.facts)):
            self.rows = read(self.file, self.kind)[1]

    def add(self, rows: Sequence[Kind]) -> None:
        """Add rows to the file."""
        self.rows += rows
        if self.file:
            write(self.file, self.kind, self.facts, self.rows)

    def finish(self) -> list[Kind]:
        """Return all rows, and remove the file."""
        if self.file:
            self.file.unlink(missing_ok=True)
        return self.rows
