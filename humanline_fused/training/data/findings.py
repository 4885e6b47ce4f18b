"""Findings: what a dataset's report says besides its examples. Each cause once, with a count and its first example."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

SHOWN = 80
"""Maximum number of characters of an example's text."""


class Severity(Enum):
    """Consequence of a finding.

    Attributes:
        LOSS: something that was written is not learnt, or is learnt as something else. Strict data refuse it.
        NOTE: a user should know it before training.
        DETAIL: only a report on the whole data has it.
    """

    LOSS = "loss"
    NOTE = "note"
    DETAIL = "detail"


@dataclass(frozen=True)
class Cause:
    """A kind of finding.

    Attributes:
        name: key in stored findings.
        text: the sentence; ``{n}`` is the count.
        severity: the consequence.
    """

    name: str
    text: str
    severity: Severity


@dataclass
class Finding:
    """How often a cause was found, and where first.

    Attributes:
        count: number of rows, messages or texts, whichever the cause's sentence counts.
        where: place of the first one.
        example: its text.
    """

    count: int = 0
    where: str = ""
    example: str = ""


@dataclass
class Findings:
    """The findings of a dataset by the name of their cause, in order of first appearance."""

    found: dict[str, Finding] = field(default_factory=dict)

    def add(self, cause: Cause, where: str = "", example: str = "", count: int = 1) -> None:
        """Count a finding; the first one gives the example."""
        if count:
            finding = self.found.setdefault(cause.name, Finding(0, where, example))
            finding.count += count

    def merge(self, later: "Findings") -> None:
        """Add the findings of later rows."""
        for name, other in later.found.items():
            finding = self.found.setdefault(name, Finding(0, other.where, other.example))
            finding.count += other.count

    def of(self, *severities: Severity) -> Iterator[tuple[Cause, Finding]]:
        """Yield the findings of the given severities; all without any."""
        for name, finding in self.found.items():
            cause = CAUSES[name]
            if not severities or cause.severity in severities:
                yield cause, finding

    def lines(self, *severities: Severity) -> list[str]:
        """Return one line per cause: its sentence, and the place and text of the first example."""
        return [_line(cause, finding) for cause, finding in self.of(*severities)]

    def count(self, cause: Cause) -> int:
        """Return how often a cause was found."""
        return self.found[cause.name].count if cause.name in self.found else 0

    def to_json(self) -> dict[str, Any]:
        """Return the findings as JSON, for :meth:`from_json`."""
        return {name: [finding.count, finding.where, finding.example] for name, finding in self.found.items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Findings":
        """Return the findings that :meth:`to_json` stored."""
        return cls({name: Finding(*parts) for name, parts in stored.items() if name in CAUSES})


def _line(cause: Cause, finding: Finding) -> str:
    example = finding.example if len(finding.example) <= SHOWN else f"{finding.example[: SHOWN - 1]}…"
    place = f", e.g. {finding.where}" if finding.where else ""
    return cause.text.format(n=finding.count) + place + (f": {example!r}" if example else "")


CAUSES: dict[str, Cause] = {}
"""All causes by name."""


def _cause(name: str, text: str, severity: Severity) -> Cause:
    return CAUSES.setdefault(name, Cause(name, text, severity))


LOSS, NOTE, DETAIL = Severity.LOSS, Severity.NOTE, Severity.DETAIL

COLUMN_IGNORED = _cause("column ignored", "{n} rows have columns that are not used", DETAIL)
PROMPT_REPEATED = _cause("prompt repeated", "{n} completions begin with their prompt again", LOSS)
PROMPT_TAKEN_ONCE = _cause(
    "prompt taken once", "{n} completions are whole conversations that begin with their prompt: it is taken once", NOTE
)
