"""Where a prompt ends and its completions begin, and which system message it has."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from humanline_fused.training.data.findings import PROMPT_REPEATED, PROMPT_TAKEN_ONCE, SYSTEM_ADDED, Findings
from humanline_fused.training.data.prefix import common_length
from humanline_fused.training.data.rows.columns import SYSTEM_COLUMNS
from humanline_fused.training.data.rows.doubts import number_of_words
from humanline_fused.training.data.rows.messages import Message, Text, joined

SYSTEM_ROLES = ("system", "developer")
REPEATED_WORDS, REPEATED_CHARACTERS = 2, 10
"""A completion may begin with a shorter prompt by accident."""


def split_prompt(chosen: Any, rejected: Any) -> tuple[Any, list[Any]]:
    """Split off the prompt: the common beginning of both, without a space at its end. This is TRL 1.16's rule.

    If both are equal, or one is the beginning of the other, the last character or message of the shorter one belongs
    to the completions.

    Raises:
        ValueError: one of both is empty.

    >>> split_prompt("The sky is blue.", "The sky is green.")
    ('The sky is', [' blue.', ' green.'])
    """
    shorter = min(len(chosen), len(rejected))
    if not shorter:
        raise ValueError("expected chosen and rejected to begin with their prompt, got one that is empty")
    stop = common_length(chosen, rejected)
    if stop == shorter or (stop and chosen[stop - 1] == " "):
        stop -= 1
    return chosen[:stop], [chosen[stop:], rejected[stop:]]


def take_prompt_once(
    prompt: Text, completions: list[Text], system: str | None, where: str, findings: Findings
) -> list[Text]:
    """Return completions without their prompt, if all are whole conversations that begin with it.

    A conversation may also begin with the message of the row's system column. Texts stay as they are; the ones that
    begin with their prompt are counted, as are answers that begin with the answer that the prompt has begun.
    """
    if isinstance(prompt, str):
        _count_repeated(prompt, completions, where, findings)
        return completions
    if prompt[-1]["role"] == "assistant":
        _count_repeated(prompt[-1].get("content", ""), map(_first_content, completions), where, findings)
    beginnings = [prompt] if system is None else [prompt, [_system_turn(system), *prompt]]
    for beginning in beginnings:
        length = len(beginning)
        if all(len(text) > length and text[:length] == beginning for text in completions):
            findings.add(PROMPT_TAKEN_ONCE, where, count=len(completions))
            return [text[length:] for text in completions]
    return completions


def _count_repeated(begun: str, texts: Iterable[Text], where: str, findings: Findings) -> None:
    """Count the texts that begin with what they are to go on with."""
    told = begun.strip()
    repeated = sum(isinstance(text, str) and text.lstrip().startswith(told) for text in texts)
    if repeated and (len(told) >= REPEATED_CHARACTERS or number_of_words(told) >= REPEATED_WORDS):
        findings.add(PROMPT_REPEATED, where, told, repeated)


def _first_content(completion: Text) -> str:
    return "" if isinstance(completion, str) else completion[0].get("content", "")


def system_message(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the name and text of a record's system column; None if it has none, or an empty one.

    Raises:
        ValueError: the column is not text, or two of them differ.
    """
    found = {name: joined(record[name]) for name in SYSTEM_COLUMNS if record.get(name) is not None}
    for name, text in found.items():
        if text is None:
            raise ValueError(f"{name}: expected the text of a system message, got {record[name]!r:.80}")
    texts = {name: text for name, text in found.items() if text and text.strip()}
    if len({text.strip() for text in texts.values()}) > 1:
        names = " and ".join(map(repr, texts))
        raise ValueError(f"expected one system message, got different ones in {names}: columns: {{system: null}}")
    return next(iter(texts.items()), None)


def with_system(prompt: Text, system: tuple[str, str] | None, has_column: bool, where: str, findings: Findings) -> Text:
    """Return a prompt of messages with the system column's message as its first.

    Args:
        prompt: the prompt; unchanged if it has this system message already.
        system: name and text of the column.
        has_column: True if the prompt is a column of its own, so that it can be joined with the system column.
        where: place of the record, for findings.

    Raises:
        ValueError: the prompt is text without the system message, or has another one.
    """
    if system is None:
        return prompt
    name, text = system
    ignore = f"columns: {{{name}: null}} leaves it out"
    if isinstance(prompt, str):
        if prompt.lstrip().startswith(text.strip()) or (" " in text.strip() and text.strip() in prompt):
            return prompt
        join = f"columns: {{prompt: [{name}, prompt]}} puts it before the prompt, " if has_column else ""
        raise ValueError(
            f"{name}: expected a prompt of messages, which can begin with a system message, got text: {join}{ignore}"
        )
    turns = [message for message in prompt if message["role"] in SYSTEM_ROLES]
    if not turns:
        findings.add(SYSTEM_ADDED, where, text)
        return [_system_turn(text), *prompt]
    if turns[0].get("content", "").strip() != text.strip():
        raise ValueError(
            f"{name}: expected the prompt's own system message {turns[0].get('content')!r:.80}, got {text!r:.80}: "
            f"{ignore}"
        )
    return prompt


def expect_answers(names: Sequence[str], completions: Sequence[Text], reason: str) -> None:
    """Raise ValueError unless every completion of messages begins with an assistant's turn.

    Args:
        names: columns of the completions, for the error message.
        reason: end of the error message.
    """
    for name, completion in zip(names, completions, strict=True):
        if not isinstance(completion, str) and completion[0]["role"] != "assistant":
            role = completion[0]["role"]
            raise ValueError(
                f"{name}: expected a completion that begins with an assistant's turn, got the role {role!r}: {reason}"
            )


def _system_turn(text: str) -> Message:
    return {"role": "system", "content": text}
