"""Checks of records: data type, prompt, completions, and labels or rewards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

import torch

from humanline_fused.training.data.findings import COLUMN_IGNORED, NO_PROMPT, PROMPT_PART_IGNORED, Findings
from humanline_fused.training.data.rows.columns import SYSTEM_COLUMNS, TEMPLATE_COLUMNS, Renamed, misspelt
from humanline_fused.training.data.rows.doubts import doubt_empty, doubt_pair, ignored_parts, is_accidental, prompt_hint
from humanline_fused.training.data.rows.messages import (
    CONTENT_INSTEAD,
    Record,
    Text,
    as_list,
    content_text,
    looks_like_messages,
    plain_text,
)
from humanline_fused.training.data.rows.prompt_rules import (
    expect_answers,
    split_prompt,
    system_message,
    take_prompt_once,
    with_system,
)
from humanline_fused.training.data.rows.template_columns import template_arguments

BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
IMAGE_COLUMNS = ("image", "images")
A_USERS_TURN = "columns: {prompt: prompt} makes the text a user's message"
ALIASES = {"reward": "score"}
"""Names that columns may have instead."""


@dataclass(frozen=True)
class DataType:
    """A type of data, with TRL's name and columns; only those with rewards are not TRL's.

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
SCORED = DataType("scored", ("prompt", "completion", "reward"))
SUPERVISED = DataType("prompt-completion", ("prompt", "completion"))
MESSAGES = DataType("language modeling", ("messages",))
TEXT = DataType("language modeling", ("text",))
PROMPTS = DataType("prompt-only", ("prompt",), "every objective with rounds (--rollout_every)")
TYPES = (UNPAIRED, REWARDED, PREFERENCE, IMPLICIT, STEPWISE, SCORED, SUPERVISED, PROMPTS, MESSAGES, TEXT)
"""The types in order of detection: a record has the first type whose columns it has."""
ALL_COLUMNS = {column for kind in TYPES for column in kind.columns}


class Taker(Protocol):
    """Consumer of rows of certain data types: an objective, or what samples completions of prompts."""

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
    """Return the first of the types whose columns a record has; None if it has those of none."""
    for kind in among:
        if any(_cell(record, column) is None for column in kind.columns):
            continue
        if kind is PREFERENCE and _repeats_prompt(record):
            return IMPLICIT
        if kind is PROMPTS and any(record.get(name) is not None for name in ("chosen", "rejected", "completions")):
            continue
        return kind
    return None


def _repeats_prompt(record: Record) -> bool:
    """Return True if the messages of a pair contain the prompt, which a column of text repeats."""
    if isinstance(record, Renamed) and "prompt" in record.renamed:
        return False
    is_text = isinstance(record["prompt"], str) and not looks_like_messages(record["prompt"])
    return is_text and all(map(looks_like_messages, (record["chosen"], record["rejected"])))


def _cell(record: Record, column: str) -> Any:
    value = record.get(column)
    return record.get(ALIASES[column]) if value is None and column in ALIASES else value


def used_columns(kind: DataType, record: Record) -> set[str]:
    """Return the names of the columns of a record that a row of this type uses, or that it may use."""
    used = {*kind.columns, "prompt", *SYSTEM_COLUMNS, *TEMPLATE_COLUMNS}
    return used | {ALIASES[column] for column in ALIASES if column in kind.columns and record.get(column) is None}


def read_row(
    where: str, record: Any, taker: Taker, like: DataType | None = None, *, findings: Findings | None = None
) -> Row:
    """Check a record and split it into prompt, completions and values.

    Args:
        where: place of the record, for error messages.
        record: the record, after :func:`~humanline_fused.training.data.rows.columns.apply_columns`.
        taker: the consumer of the row; one of prompts takes that of any record.
        like: the type of the preceding rows.
        findings: counts of what was noticed, to be added to.

    Raises:
        ValueError: the record lacks a column that the consumer needs, or a column has the wrong content.
    """
    findings = Findings() if findings is None else findings
    columns = taker.types[0].columns
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected an object with the columns {', '.join(columns)}, got {record!r:.80}")
    kind = PROMPTS if taker.types == (PROMPTS,) else type_of(record, taker.types)
    if kind is None or any(_cell(record, column) is None for column in kind.columns):
        raise ValueError(f"{where}: {_unfit(record, taker)}")
    if like is not None and kind != like:
        raise ValueError(f"{where}: expected {like}, as in the rows before, got {kind}")
    images = [name for name in IMAGE_COLUMNS if record.get(name)]
    if images:
        raise ValueError(f"{where}: expected text alone, got {images[0]!r}: images are not supported")
    try:
        prompt, completions = _texts(where, record, kind, findings)
        values = _values(record, kind, len(completions))
        template = template_arguments(record, prompt)
    except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from None
    if kind is not PROMPTS:
        _count_ignored(where, record, kind, prompt, findings)
    return Row(kind, prompt, completions, values, template)


def _count_ignored(where: str, record: Record, kind: DataType, prompt: Text, findings: Findings) -> None:
    used = used_columns(kind, record)
    ignored = [name for name, value in record.items() if name not in used and value is not None]
    if ignored:
        findings.add(COLUMN_IGNORED, where, ", ".join(map(str, ignored)))
        parts = ignored_parts(record, used, content_text(prompt))
        findings.add(PROMPT_PART_IGNORED, where, ", ".join(parts), count=bool(parts))


def _unfit(record: Record, taker: Taker) -> str:
    def present(kind: DataType) -> int:
        return sum(_cell(record, column) is not None for column in kind.columns if column != "prompt")

    looks = type_of(record)
    partly = present(taker.types[0]) > 0
    if looks is not None and not (partly and not taker.takers(looks) and looks is not STEPWISE):
        lacking = [column for column in taker.types[0].columns if _cell(record, column) is None]
        needs = f"{taker.name} needs {', '.join(taker.types[0].columns)}{misspelt(record, lacking, ALL_COLUMNS)}"
        return f"this looks like {looks}, which {takers_of(looks, taker)} takes; {needs}"
    nearest = max(taker.types, key=present)  # the first of those with the most columns
    missing = [column for column in nearest.columns if _cell(record, column) is None]
    has = ", ".join(repr(name) for name, value in record.items() if value is not None)
    hint = misspelt(record, missing, ALL_COLUMNS) or (prompt_hint(record, ALL_COLUMNS) if "prompt" in missing else "")
    needs = f"{taker.name} needs {', '.join(nearest.columns)}"
    return f"lacks {', '.join(map(repr, missing))}; {needs}, this has {has}{hint}"


def _texts(where: str, record: Record, kind: DataType, findings: Findings) -> tuple[Text, list[Text]]:
    names, given = _completions(record, kind)
    prompt: Any = None if kind is IMPLICIT else record["prompt"]
    plain = [plain_text(name, text, where, findings) for name, text in zip(names, given, strict=True)]
    completions: list[Any] = _of_one_kind(plain, given)
    system = system_message(record)
    if kind is IMPLICIT:
        prompt, completions = _implicit(where, record, completions, findings)
        reason = "chosen and rejected part at a turn that is not the assistant's"
    else:
        renamed = isinstance(record, Renamed) and "prompt" in record.renamed
        asked = plain_text("prompt", prompt, where, findings)
        if renamed and isinstance(asked, str) and completions and not isinstance(completions[0], str):
            asked = [{"role": "user", "content": asked}]  # the setting says that this text is the question
        hint = f": {A_USERS_TURN}" if isinstance(asked, str) else ""
        prompt, *completions = _of_one_kind([asked, *completions], [prompt, *given], hint)
        if isinstance(prompt, str) and not prompt.strip() and completions and not renamed:
            doubt_empty(record, used_columns(kind, record) - {*SYSTEM_COLUMNS}, completions)
        completions = take_prompt_once(prompt, completions, system and system[1], where, findings)
        reason = "the prompt is taken once if all completions of a row begin with the whole of it"
    prompt = with_system(prompt, system, kind is not IMPLICIT, where, findings)
    expect_answers(names, completions, reason)
    return prompt, completions


def _completions(record: Record, kind: DataType) -> tuple[list[str], list[Any]]:
    """Return the completions of a record as given, after the name of each one's column."""
    if kind is PROMPTS:
        return [], []
    if kind is REWARDED:
        given = as_list(record["completions"])
        if not isinstance(given, list):
            raise ValueError(f"expected completions to be a list, got {given!r:.80}")
        return ["completions"] * len(given), given
    names = ["completion"] if kind in (UNPAIRED, SCORED) else ["chosen", "rejected"]
    return names, [record[name] for name in names]


def _of_one_kind(texts: Sequence[Text | None], given: Sequence[Any], hint: str = "") -> list[Text]:
    kinds = {type(text) for text in texts}
    if len(kinds) > 1 or type(None) in kinds:
        raise ValueError(
            "expected prompt and completions all to be text or all to be lists of {role, content} messages, "
            f"got {list(given)!r:.200}{hint}"
        )
    return [text for text in texts if text is not None]


def _implicit(where: str, record: Record, pair: list[Text], findings: Findings) -> tuple[Text, list[Text]]:
    """Return the prompt that a pair begins with, and the rest; refuse a pair whose prompt stands elsewhere."""
    prompt, completions = split_prompt(*pair)
    waived = isinstance(record, Renamed) and "prompt" in record.without
    if not waived:
        system = {*SYSTEM_COLUMNS} if isinstance(prompt, str) else set()
        doubt_pair(record, used_columns(IMPLICIT, record) - system, prompt, pair)
    if prompt == []:
        hint = f": {A_USERS_TURN}" if isinstance(record.get("prompt"), str) else ""
        raise ValueError(f"expected chosen and rejected to begin with the same messages, their prompt, got none{hint}")
    if isinstance(prompt, str) and is_accidental(prompt) and not waived:
        findings.add(NO_PROMPT, where, prompt)
    return prompt, completions


def _values(record: Record, kind: DataType, number: int) -> list[float]:
    if kind is UNPAIRED:
        given = as_list(record["label"])
        label = BOOLEANS.get(str(given).strip().lower())
        if label is None:
            raise ValueError(f"expected label to be true or false, got {given!r:.80}")
        return [float(label)]
    if kind is SCORED:
        given = _cell(record, "reward")
        reward = _number(given)
        if reward is None:
            raise ValueError(f"expected the reward of a completion to be a finite number, got {_reward(given)}")
        return [reward]
    if kind is REWARDED:
        rewards = as_list(record["rewards"])
        if number < 2:
            raise ValueError(f"expected at least 2 completions, got {number}: a group of one has no baseline")
        numbers = [_number(reward) for reward in rewards] if isinstance(rewards, list) else []
        if None in numbers or len(numbers) != number:
            raise ValueError(f"expected {number} finite rewards, one a completion, got {_reward(rewards)}")
        return [reward for reward in numbers if reward is not None]
    return []


def _reward(given: Any) -> str:
    """Return a refused reward, or list of rewards, as text; with a number to write for true and false."""
    truths = [item for item in (given if isinstance(given, list) else [given]) if isinstance(item, bool)]
    return f"{given!r:.80}{': write 1 for true and 0 for false' if truths else ''}"


def _number(value: Any) -> float | None:
    """Return a number that is finite in float32, or the text of one; None for anything else, such as true."""
    value = as_list(value)
    if isinstance(value, bool) or not isinstance(value, Real | str):
        return None
    if isinstance(value, str) and "_" in value:  # Python reads 1_0 as 10
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= torch.finfo(torch.float32).max else None


def is_blank(text: Text, end: str) -> bool:
    """Return True for a completion that has no content but white space and the end of sequence.

    >>> is_blank(" </s>", "</s>"), is_blank([{"role": "assistant", "content": "yes"}], "</s>")
    (True, False)
    """
    if isinstance(text, str):
        return not text.removesuffix(end).strip()
    return not any(message.get(key) for message in text for key in CONTENT_INSTEAD) and not content_text(text).strip()
