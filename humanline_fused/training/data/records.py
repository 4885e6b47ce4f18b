"""Checks of records: data type, prompt, completions, and labels or rewards."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

Text = str | list[dict[str, Any]]
Record = Mapping[str, Any]

BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
IMAGE_COLUMNS = ("image", "images")


@dataclass(frozen=True)
class DataType:
    """A type of data, with TRL's name and columns; only the groups with rewards are not TRL's.

    Attributes:
        user: text that names the consumer of data that no objective takes.
    """

    name: str
    columns: tuple[str, ...]
    user: str = "no objective"

    def __str__(self) -> str:
        return f"{self.name} data ({', '.join(self.columns)})"


PREFERENCE = DataType("preference", ("prompt", "chosen", "rejected"))
IMPLICIT = DataType("preference", ("chosen", "rejected"))
UNPAIRED = DataType("unpaired preference", ("prompt", "completion", "label"))
REWARDED = DataType("rewarded", ("prompt", "completions", "rewards"))
STEPWISE = DataType("stepwise supervision", ("prompt", "completions", "labels"))
SUPERVISED = DataType("prompt-completion", ("prompt", "completion"))
MESSAGES = DataType("language modeling", ("messages",))
TEXT = DataType("language modeling", ("text",))
PROMPTS = DataType("prompt-only", ("prompt",), "every objective with rounds (--rollout_every)")
TYPES = (UNPAIRED, REWARDED, PREFERENCE, IMPLICIT, STEPWISE, SUPERVISED, PROMPTS, MESSAGES, TEXT)
"""The types in order of detection: a record has the first type whose columns it has."""


class Taker(Protocol):
    """Consumer of rows of certain data types: an objective, or a round, which takes prompts."""

    @property
    def name(self) -> str:
        """The name in messages."""
        ...

    @property
    def types(self) -> tuple[DataType, ...]:
        """The accepted types of data; an error message names the columns of the first."""
        ...

    def takers(self, kind: DataType) -> list[str]:
        """Return the names of the objectives that accept this type of data."""
        ...


def takers_of(kind: DataType, taker: Taker) -> str:
    """Return the objectives that accept this type of data, as text."""
    return " or ".join(f"objective={name!r}" for name in taker.takers(kind)) or kind.user


@dataclass(frozen=True)
class Row:
    """A checked record.

    Attributes:
        completions: chosen and rejected for a pair, else the row's completions.
        values: one per completion: labels, 1 desirable or 0 undesirable, or rewards; empty for a pair.
        template: arguments of the chat template besides the messages.
    """

    type: DataType
    prompt: Text
    completions: list[Text] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    template: dict[str, Any] = field(default_factory=dict)


def type_of(record: Record, among: Sequence[DataType] = TYPES) -> DataType | None:
    """Return the data type of a record; None if it is not in ``among``."""
    for kind in TYPES:
        missing = [column for column in kind.columns if record.get(column) is None]
        if missing or kind not in among:
            continue
        if (
            kind is PREFERENCE
            and _is_text(record["prompt"])
            and all(map(_is_messages, (record["chosen"], record["rejected"])))
        ):
            return IMPLICIT  # the messages contain the prompt, which the text column repeats
        if kind is PROMPTS and any(record.get(name) is not None for name in ("chosen", "rejected", "completions")):
            continue
        return kind
    return None


def read_row(where: str, record: Any, taker: Taker, like: DataType | None = None) -> Row:
    """Check a record and split it into prompt, completions and values.

    Args:
        where: place of the record, for error messages.
        record: the record.
        taker: the consumer of the row; a round takes the prompt of any record.
        like: the type of the preceding rows.

    Raises:
        ValueError: the record lacks a column that the consumer needs, or a column has the wrong content.
    """
    columns = taker.types[0].columns
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected an object with the columns {', '.join(columns)}, got {record!r:.80}")
    kind = PROMPTS if taker.types == (PROMPTS,) else type_of(record, taker.types)
    if kind is None or any(record.get(column) is None for column in kind.columns):
        raise ValueError(f"{where}: {_unfit(record, taker)}")
    if like is not None and kind != like:
        raise ValueError(f"{where}: expected {like}, as in the rows before, got {kind}")
    images = [name for name in IMAGE_COLUMNS if record.get(name)]
    if images:
        raise ValueError(f"{where}: expected text alone, got {images[0]!r}: images are not supported")
    try:
        prompt, completions, values = _parts(record, kind)
        template = _template(record, prompt)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Row(kind, prompt, completions, values, template)


def _unfit(record: Record, taker: Taker) -> str:
    columns = taker.types[0].columns
    needs = f"{taker.name} needs {', '.join(columns)}"
    looks = type_of(record)
    missing = [column for column in columns if record.get(column) is None]
    partly = len(missing) < len([column for column in columns if column != "prompt"])
    if looks is None or (partly and not taker.takers(looks) and looks is not STEPWISE):
        return f"lacks {', '.join(map(repr, missing))}; {needs}, this has {', '.join(map(repr, record))}"
    return f"this looks like {looks}, which {takers_of(looks, taker)} takes; {needs}"


def _parts(record: Record, kind: DataType) -> tuple[Text, list[Text], list[float]]:
    prompt: Any = record.get("prompt")
    if kind is PROMPTS:
        completions: Any = []
    elif kind is REWARDED:
        completions = record["completions"]
        if not isinstance(completions, list | tuple):
            raise ValueError(f"expected completions to be a list, got {completions!r:.80}")
        completions = list(completions)
    elif kind is UNPAIRED:
        completions = [record["completion"]]
    else:
        completions = [record["chosen"], record["rejected"]]
    if kind is IMPLICIT:
        _expect_kind(completions[0], completions)
        prompt, completions = _split_prompt(*completions)
    _expect_kind(prompt, [prompt, *completions])
    return prompt, completions, _values(record, kind, len(completions))


def _values(record: Record, kind: DataType, number: int) -> list[float]:
    if kind is UNPAIRED:
        label = BOOLEANS.get(str(record["label"]).strip().lower())
        if label is None:
            raise ValueError(f"expected label to be true or false, got {record['label']!r:.80}")
        return [float(label)]
    if kind is REWARDED:
        rewards = record["rewards"]
        if number < 2:
            raise ValueError(f"expected at least 2 completions, got {number}: a group of one has no baseline")
        finite = isinstance(rewards, list | tuple) and all(map(_is_finite, rewards))
        if not finite or len(rewards) != number:
            raise ValueError(f"expected {number} finite rewards, one a completion, got {rewards!r:.80}")
        return [float(reward) for reward in rewards]
    return []


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def _split_prompt(chosen: Any, rejected: Any) -> tuple[Any, list[Any]]:
    """Split off the prompt: the common beginning of both, without a space at its end. This is TRL 1.16's rule.

    If both are equal, or one is the beginning of the other, the last character or message of the shorter one belongs
    to the completions.
    """
    shorter = min(len(chosen), len(rejected))
    if not shorter:
        raise ValueError("expected chosen and rejected to begin with their prompt, got one that is empty")
    stop = next((i for i in range(shorter) if chosen[i] != rejected[i]), None)
    if stop is None:
        stop = shorter - 1
    elif stop and chosen[stop - 1] == " ":
        stop -= 1
    if not isinstance(chosen, str) and not stop:
        raise ValueError("expected chosen and rejected to begin with the same messages, their prompt, got none")
    return chosen[:stop], [chosen[stop:], rejected[stop:]]


def _template(record: Record, prompt: Text) -> dict[str, Any]:
    given = {name: record.get(name) for name in TEMPLATE_COLUMNS}
    for name, value in given.items():
        if value and isinstance(prompt, str):
            raise ValueError(f"{name}: expected a prompt of messages, which a chat template renders, got text")
        if isinstance(value, str):
            try:
                given[name] = json.loads(value)
            except ValueError as error:
                raise ValueError(f"{name}: expected JSON, got {value[:80]!r}: {error}") from None
    tools, settings = (given[name] for name in TEMPLATE_COLUMNS)
    if tools is not None and not isinstance(tools, list):
        raise ValueError(f"tools: expected a list of JSON schemas, got {tools!r:.80}")
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(f"chat_template_kwargs: expected an object, got {settings!r:.80}")
    return ({} if tools is None else {"tools": tools}) | dict(settings or {})


def _expect_kind(first: Any, texts: Sequence[Any]) -> None:
    kind = _is_text if _is_text(first) else _is_messages
    if not all(map(kind, texts)):
        raise ValueError(
            "expected prompt and completions all to be text or all to be lists of {role, content} messages, "
            f"got {list(texts)!r:.200}"
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)


def is_blank(text: Text, end: str) -> bool:
    """Return True for a completion that has no content, or only the end of sequence.

    >>> is_blank("</s>", "</s>"), is_blank([{"role": "assistant", "content": "yes"}], "</s>")
    (True, False)
    """
    if isinstance(text, str):
        return text in ("", end)
    return not any(value for message in text for key, value in message.items() if key not in ("role", "name"))
