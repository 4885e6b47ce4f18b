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
        text: the sentence; ``{n}`` is the count, ``{of}`` the whole number and ``{share}`` their ratio.
        severity: the consequence.
    """

    name: str
    text: str
    severity: Severity


@dataclass
class Finding:
    """How often a cause was found, and where first.

    Attributes:
        count: number of rows, texts or tokens, whichever the cause's sentence counts.
        of: their whole number, where the sentence gives a share.
        where: place of the first one.
        example: its text.
    """

    count: int = 0
    of: int = 0
    where: str = ""
    example: str = ""


@dataclass
class Findings:
    """The findings of a dataset by the name of their cause, in order of first appearance."""

    found: dict[str, Finding] = field(default_factory=dict)

    def add(self, cause: Cause, where: str = "", example: str = "", count: int = 1, of: int = 0) -> None:
        """Count a finding; the first one gives the example."""
        if count:
            finding = self.found.setdefault(cause.name, Finding(0, 0, where, example))
            finding.count += count
            finding.of += of

    def merge(self, later: "Findings") -> None:
        """Add the findings of later rows."""
        for name, other in later.found.items():
            finding = self.found.setdefault(name, Finding(0, 0, other.where, other.example))
            finding.count += other.count
            finding.of += other.of

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
        return {
            name: [finding.count, finding.of, finding.where, finding.example] for name, finding in self.found.items()
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Findings":
        """Return the findings that :meth:`to_json` stored."""
        return cls({name: Finding(*parts) for name, parts in stored.items() if name in CAUSES})


def _line(cause: Cause, finding: Finding) -> str:
    example = finding.example if len(finding.example) <= SHOWN else f"{finding.example[: SHOWN - 1]}…"
    place = f", e.g. {finding.where}" if finding.where else ""
    said = cause.text.format(n=finding.count, of=finding.of, share=f"{finding.count / max(finding.of, 1):.0%}")
    return said + place + (f": {example!r}" if example else "")


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

TEXT_LOST = _cause("text lost", "the template leaves out a part of {n} texts that count; it is not learnt", LOSS)
REASONING_LOST = _cause(
    "reasoning lost", "the template leaves out the reasoning of {n} answers; it is not learnt", LOSS
)
CALLS_LOST = _cause("calls lost", "the template leaves out tool calls of {n} answers; they are not learnt", LOSS)
PROMPT_LOST = _cause(
    "prompt lost", "{n} texts are in the prompt when sampling, but the template leaves them out when training", LOSS
)
LOST_IN_BOTH = _cause("lost in both", "the template leaves out {n} texts of prompts, in training and in sampling", NOTE)
EARLIER_REASONING = _cause("earlier reasoning", "the template leaves out the reasoning of {n} earlier turns", DETAIL)
TEXT_CHANGED = _cause("text changed", "the template changes {n} texts", LOSS)
QUESTION_MOVED = _cause(
    "question moved", "the template renders the prompt of {n} completions differently once an answer follows", LOSS
)
PROMPT_END_LOST = _cause("prompt end lost", "the end of the prompt is left out of training in {n} completions", NOTE)
ANSWER_OPENED = _cause("answer opened", "{n} completions begin with text that you did not write", NOTE)
ANSWER_CONTINUED = _cause("answer continued", "{n} prompts end with an answer that was begun: continued", NOTE)
MASKED = _cause(
    "masked",
    "{share} of the tokens of completions with several turns ({n} of {of}) were not written by the policy: they do not "
    "count; train_on=completion counts them",
    NOTE,
)
OTHERS_COUNT = _cause(
    "others count",
    "{share} of the tokens of completions with several turns ({n} of {of}) were not written by the policy, and count; "
    "train_on=assistant masks them",
    LOSS,
)
TOKENS_MERGED = _cause("tokens merged", "the last token of {n} prompts merges with the completion", DETAIL)
SPECIAL_IN_TEXT = _cause("special in text", "{n} texts contain a special token as text, which becomes that token", NOTE)
ADDED_END = _cause(
    "added end", "the tokenizer ends {n} texts itself: removed behind prompts, not doubled behind completions", NOTE
)
NO_END = _cause(
    "no end", "{n} completions never end: the tokenizer has no end-of-sequence token; set its eos_token", NOTE
)
NO_STOP = _cause(
    "no stop",
    "{n} completions end without a stop token, so that the policy does not learn to stop; set eos_token",
    NOTE,
)
DROPPED = _cause("dropped", "{n} examples are dropped: prompt >= max_length", LOSS)
EMPTY = _cause("empty", "{n} examples are dropped: a completion without a token", LOSS)
BARE_END = _cause("bare end", "{n} completions are empty but for the end of sequence", NOTE)
TRUNCATED = _cause("truncated", "{n} completions are cut at max_length, and lose their end of sequence", LOSS)
NO_SIGNAL = _cause("no signal", "{n} groups have equal rewards, so no signal", NOTE)
NO_SIGNAL_DROPPED = _cause("no signal, dropped", "{n} groups of equal rewards are dropped with beta=0", NOTE)
EQUAL_PAIRS = _cause("equal pairs", "{n} pairs have equal tokens that count: nothing is learnt from them", LOSS)
