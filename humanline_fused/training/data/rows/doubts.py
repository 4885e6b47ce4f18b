"""Doubts about the form of a record: a prompt that stands in a column of another name."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from humanline_fused.training.data.rows.columns import PROMPT_PARTS, SYSTEM_COLUMNS
from humanline_fused.training.data.rows.messages import Record, Text, content_text, looks_like_messages

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""A word; where a script has no spaces, a character."""
UNSURE = ("task", "user", "input", "context", *SYSTEM_COLUMNS)
"""Names of PROMPT_PARTS that other columns have too: beside a long common beginning they raise no doubt."""
ABOUT = re.compile(
    "(?<![a-z0-9])(id|uid|uuid|index|hash|source|origin|url|link|file|path|dataset|split|model|generator|author|annotator|"
    "name|title|version|license|language|lang|category|topic|tag|type|kind|subset|label|date|time|timestamp|created|"
    "score|rating|reward|reason|rationale|explanation|critique|feedback|comment|note|principle|chosen|rejected|answer|"
    "reference|solution|response|output|metadata|meta)s?(?![a-z0-9])"
)
"""Words in the names of columns that describe a row, or repeat its answer, and are no prompt."""
FEW, SEVERAL, MANY = 2, 3, 10
"""Words: an accidental common beginning has at most FEW, a prompt SEVERAL, a beginning that holds one MANY."""


def prompt_columns(record: Record, used: Collection[str], shared: str, texts: Sequence[str]) -> list[str]:
    """Return the columns that look like the prompt of completions that lack it, in the order to join them.

    Args:
        record: the record.
        used: columns that are used already.
        shared: common beginning of the completions.
        texts: the completions, with that beginning.

    >>> prompt_columns({"question": "Is it green?", "source": "my notes of May"}, (), "The", ["The sun.", "The sea."])
    ['question']
    """
    known, others = [], []
    start = number_of_words(shared)
    for name, text in _unused(record, used):
        if name in PROMPT_PARTS:
            unsure = name in UNSURE and (number_of_words(text) < SEVERAL or start >= MANY)
            if not (unsure and start > FEW) and not (texts and all(_holds(one, text) for one in texts)):
                known.append(name)
        elif start <= FEW and _is_prose(name, text) and not any(_holds(one, text) for one in texts):
            others.append(name)
    if set(known) <= {*SYSTEM_COLUMNS}:  # a system message alone is no prompt
        return others[:1]
    texts_alone = [name for name in known if isinstance(record[name], str)]  # the setting joins texts
    return sorted(texts_alone or known[:1], key=PROMPT_PARTS.index)


def ignored_parts(record: Record, used: Collection[str], prompt: str) -> list[str]:
    """Return the columns that look like a part of the prompt and whose text is not in it.

    >>> ignored_parts({"prompt": "And then?", "history": ["Once upon a time"]}, ("prompt",), "And then?")
    ['history']
    """
    return [
        name
        for name, text in _unused(record, used)
        if (part := name.lower()) in PROMPT_PARTS
        and not _holds(prompt, text)
        and (part not in UNSURE or part == "input" or number_of_words(text) >= SEVERAL)
    ]


def doubt_pair(record: Record, used: Collection[str], shared: Text, pair: Sequence[Text]) -> None:
    """Raise ValueError for a pair whose prompt seems to stand in another column.

    Args:
        record, used: as in :func:`prompt_columns`.
        shared: the pair's common beginning.
        pair: chosen and rejected, with that beginning.
    """
    if not isinstance(shared, str):
        _doubt_repeated(record.get("prompt"), content_text(shared))
        if record.get("prompt") or any(message["role"] == "user" for message in shared):
            return
    begin = shared if isinstance(shared, str) else ""
    names = prompt_columns(record, used, begin, [content_text(text) for text in pair])
    if names:
        raise ValueError(
            "expected a column 'prompt', or chosen and rejected that begin with their prompt: they share "
            f"{f'only {begin!r:.40}' if begin else 'no beginning'}, and {_listed(names)} would be ignored: "
            f"{remedy(names)}, or columns: {{prompt: null}} to ignore it"
        )


def _doubt_repeated(prompt: Any, shared: str) -> None:
    if not isinstance(prompt, str) or _holds(shared, prompt.strip()) or _holds(prompt, shared.strip()):
        return
    raise ValueError(
        f"expected chosen and rejected to begin with messages that contain the prompt, got the prompt {prompt!r:.80}: "
        "columns: {prompt: null} ignores it"
    )


def doubt_empty(record: Record, used: Collection[str], texts: Sequence[Text]) -> None:
    """Raise ValueError for completions with an empty prompt beside a column that looks like one."""
    names = prompt_columns(record, used, "", [content_text(text) for text in texts])
    if names:
        raise ValueError(f"expected a prompt that is not empty, and {_listed(names)} would be ignored: {remedy(names)}")


def prompt_hint(record: Record, used: Collection[str]) -> str:
    """Return the end of an error message on a record without a prompt; empty if no column looks like one.

    >>> prompt_hint({"question": "Is it green?", "completion": "No.", "label": True}, ("completion", "label"))
    ": columns: {prompt: question} makes 'question' the prompt"
    """
    if any(map(looks_like_messages, record.values())):  # a system column becomes a message of its own
        used = {*used, *SYSTEM_COLUMNS}
    names = prompt_columns(record, used, "", []) if record.get("prompt") is None else []
    return f": {remedy(names)} makes {_listed(names)} the prompt" if names else ""


def remedy(names: Sequence[str]) -> str:
    """Return the setting that makes columns the prompt.

    >>> remedy(["instruction", "input"])
    'columns: {prompt: [instruction, input]}'
    """
    return f"columns: {{prompt: {names[0] if len(names) == 1 else '[' + ', '.join(names) + ']'}}}"


def is_accidental(shared: str) -> bool:
    """Return True for a common beginning that two answers have by accident."""
    return number_of_words(shared) <= FEW


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))


def _unused(record: Record, used: Collection[str]) -> Iterator[tuple[str, str]]:
    for name, value in record.items():
        if name not in used and value is not None and isinstance(name, str) and (text := opening(value)):
            yield name, text


def number_of_words(text: str) -> int:
    """Return the number of words, at most MANY; of characters where a script has no spaces.

    >>> number_of_words("The sky, is it green?"), number_of_words("天空是")
    (5, 3)
    """
    return sum(1 for _ in islice(WORD.finditer(text), MANY))


def opening(value: Any) -> str:
    """Return the first text in a value: itself, the first of a list, the content of a message.

    >>> opening([{"role": "user", "content": " Sky? "}]), opening([["Hi", "Hello"]]), opening(3)
    ('Sky?', 'Hi', '')
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Mapping):
        return opening(value.get("content") or value.get("value"))
    if isinstance(value, list | tuple):
        return next(filter(None, map(opening, value)), "")
    return ""


def _is_prose(name: str, text: str) -> bool:
    return number_of_words(text) >= SEVERAL and not ABOUT.search(name.lower())


def _holds(text: str, part: str) -> bool:
    return part in text or " ".join(part.split()) in " ".join(text.split())
