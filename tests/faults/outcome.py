"""Outcomes of faults, and their counts."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What became of a fault. The first two are right.

    A fault is *harmless* if the end is bit for bit the one without it, or the result the oracle's; *refused* if one
    message names what is wrong; *silent* if the end or the result is another one without a word; a *traceback* if
    anything else is raised or printed; *lost* if a run cannot be continued although nothing in it is damaged, or hangs.
    """

    HARMLESS = "harmless"
    REFUSED = "refused"
    SILENT = "silent"
    TRACEBACK = "traceback"
    LOST = "lost"


RIGHT = {Outcome.HARMLESS, Outcome.REFUSED}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: kill, damage or call.
        seed: repeats it: ``python -m tests.faults --kills 1 --seed SEED``, and so ``--damage`` and ``--calls``.
        what: the class it is counted in.
        outcome: what became of it.
        said: what happened in detail, for a failure.
    """

    kind: str
    seed: int
    what: str
    outcome: Outcome
    said: str

    @property
    def right(self) -> bool:
        return self.outcome in RIGHT

    def __str__(self) -> str:
        return f"{self.kind}, seed {self.seed}: {self.outcome}: {self.what}: {self.said}"


@dataclass(frozen=True)
class Count:
    """A row of the results: the faults of one class."""

    fault: str
    what: str
    tried: int
    harmless: int
    refused: int
    silent: int
    traceback: int
    lost: int


def counted(kind: str, faults: Iterable[tuple[str, Outcome]]) -> list[Count]:
    """Return the counts of faults of one kind by class, in the order of their names."""
    outcomes: dict[str, Counter[Outcome]] = {}
    for what, outcome in faults:
        outcomes.setdefault(what, Counter())[outcome] += 1
    return [
        Count(kind, what, found.total(), **{outcome.value: found[outcome] for outcome in Outcome})
        for what, found in sorted(outcomes.items())
    ]
