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
        text: what is counted.
        severity: the consequence.
    """

    name: str
    text: str
    severity: Severity


@dataclass
class Finding:
    """How often a cause was found, and where first.

    Attributes:
        count: number of what the cause counts.
        of: their whole number; 0 where it is not counted.
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
        """Return one line per cause: what is counted, how often, and the place and text of the first example."""
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
    count = f"{finding.count} of {finding.of} ({finding.count / finding.of:.0%})" if finding.of else f"{finding.count}"
    place = f", e.g. {finding.where}" if finding.where else ""
    return f"{cause.text}: {count}" + place + (f": {example!r}" if example else "")


CAUSES: dict[str, Cause] = {}
"""All causes by name."""


def _cause(name: str, text: str, severity: Severity) -> Cause:
    return CAUSES.setdefault(name, Cause(name, text, severity))


LOSS, NOTE, DETAIL = Severity.LOSS, Severity.NOTE, Severity.DETAIL

COLUMN_IGNORED = _cause("column ignored", "rows with columns that are not used", DETAIL)
PROMPT_REPEATED = _cause("prompt repeated", "completions that begin with their prompt again", LOSS)
PROMPT_TAKEN_ONCE = _cause(
    "prompt taken once", "completions that are whole conversations with their prompt, which is taken once", NOTE
)

TEXT_LOST = _cause("text lost", "texts of answers that the template leaves out, so that they are not learnt", LOSS)
REASONING_LOST = _cause(
    "reasoning lost", "answers whose reasoning the template leaves out, so that it is not learnt", LOSS
)
CALLS_LOST = _cause("calls lost", "answers whose tool calls the template leaves out, so that they are not learnt", LOSS)
PROMPT_LOST = _cause("prompt lost", "texts that are in the prompt when sampling, but not when training", LOSS)
LOST_IN_BOTH = _cause("lost in both", "texts of prompts that the template leaves out", LOSS)
EARLIER_REASONING = _cause("earlier reasoning", "earlier turns whose reasoning the template leaves out", DETAIL)
TEXT_CHANGED = _cause("text changed", "texts that the template changes", LOSS)
QUESTION_MOVED = _cause(
    "question moved", "completions whose prompt the template renders differently once an answer follows", LOSS
)
PROMPT_END_LOST = _cause("prompt end lost", "prompts whose end is left out of training", NOTE)
ANSWER_OPENED = _cause("answer opened", "completions that begin with text that you did not write", NOTE)
ANSWER_CONTINUED = _cause("answer continued", "prompts that end with an answer that was begun: continued", NOTE)
MASKED = _cause(
    "masked",
    "tokens of completions that the policy did not write: they do not count (train_on=completion counts them)",
    NOTE,
)
OTHERS_COUNT = _cause(
    "others count",
    "tokens of completions that the policy did not write, and that count (train_on=assistant masks them)",
    NOTE,
)
TOKENS_MERGED = _cause("tokens merged", "prompts whose last token merges with the completion", DETAIL)
SPECIAL_IN_TEXT = _cause("special in text", "texts with a special token in them, which becomes that token", NOTE)
UNKNOWN = _cause("unknown", "texts with a part that the tokenizer does not know, so that it is not learnt", LOSS)
ADDED_END = _cause(
    "added end", "texts that the tokenizer ends itself: removed behind prompts, not doubled behind completions", NOTE
)
NO_END = _cause(
    "no end", "completions that never end, as the tokenizer has no end-of-sequence token: set its eos_token", NOTE
)
NO_STOP = _cause(
    "no stop", "completions that end without a stop token, so that stopping is not learnt: set the eos_token", NOTE
)

DROPPED = _cause("dropped", "dropped examples (prompt >= max_length)", LOSS)
EMPTY = _cause("empty", "dropped examples (a completion without a token)", LOSS)
BARE_END = _cause("bare end", "completions that are empty but for the end of sequence", NOTE)
TRUNCATED = _cause("truncated", "completions cut at max_length (end of sequence lost)", LOSS)
NO_SIGNAL = _cause("no signal", "groups without signal (equal rewards)", NOTE)
NO_SIGNAL_DROPPED = _cause("no signal, dropped", "groups without signal, dropped with beta=0", NOTE)
EQUAL_PAIRS = _cause("equal pairs", "pairs whose tokens that count are equal", LOSS)

PARTS_JOINED = _cause("parts joined", "messages whose content is a list of text parts, which are joined", DETAIL)
JSON_MESSAGES = _cause("JSON messages", "texts that are messages in JSON, and are read as messages", DETAIL)
UNREAD = _cause("unread", "rows with keys of messages or template variables that the chat template does not read", NOTE)
OTHER_ROLES = _cause("other roles", "messages of another role than system, developer, user, assistant and tool", NOTE)
SYSTEM_ADDED = _cause("system added", "prompts that begin with the message of the system column", NOTE)
PROMPT_PART_IGNORED = _cause(
    "prompt part ignored", "rows with a column that looks like a part of the prompt and is not used", NOTE
)
NO_PROMPT = _cause("no prompt", "pairs without a prompt column that share almost no beginning", NOTE)
ALONE = _cause("alone", "prompts with one scored completion, left out: a group needs two", LOSS)
PAIRED = _cause("paired", "pairs of the best and the worst completion of a prompt, by rewards", NOTE)
TIED = _cause("tied", "prompts left out, as the rewards of their completions are equal", NOTE)
LABELLED = _cause(
    "labelled", "labels from rewards: desirable above the mean of the prompt's completions, undesirable below", NOTE
)
AT_MEAN = _cause("at mean", "completions left out, as their reward is the mean of the prompt's completions", NOTE)
ALL_DESIRABLE = _cause("all desirable", "completions that are desirable, and none that is undesirable", LOSS)
ALL_UNDESIRABLE = _cause("all undesirable", "completions that are undesirable, and none that is desirable", LOSS)
