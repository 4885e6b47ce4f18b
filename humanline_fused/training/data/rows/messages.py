"""Texts and messages of a record made plain: one form for every source and file type, or refused with the reason."""

import json
import re
from collections.abc import Mapping
from typing import Any

from humanline_fused.training.data.findings import JSON_MESSAGES, OTHER_ROLES, PARTS_JOINED, Findings
from humanline_fused.training.data.reading.exact_json import parse
from humanline_fused.training.data.reading.plain import plain

Record = Mapping[str, Any]
Text = str | list[dict[str, Any]]
Message = dict[str, Any]

JSON_TEXT = re.compile(r"\s*\[?\s*\{\s*['\"][^'\"]+['\"]\s*:")
"""Beginning of a text that may hold messages."""
ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of messages; those of other ones are counted."""
KEYS = (("role", "content"), ("from", "value"))
"""Keys of a message: TRL's, and ShareGPT's, which are refused by name."""
CONTENT_INSTEAD = ("tool_calls", "reasoning_content", "thinking", "reasoning")
"""Keys that make a message without ``content`` complete."""
OTHER_NAMES = ("text", "value", "message")
"""Keys that some data have for ``content``."""
PLAIN = {"role", "content"}


def plain_text(name: str, value: Any, where: str, findings: Findings) -> Text | None:
    """Return a text, or a list of messages whose contents are text; None for a value that is neither.

    A message keeps its keys, without those that are None. Its content is text; a list of text parts is joined. Without
    content it has tool calls or reasoning. A text that is JSON of a list of messages gives the messages.

    Args:
        name: the value's column, for error messages.
        where: place of the record, for findings.

    Raises:
        ValueError: a message is incomplete, or its content is not text.

    >>> plain_text("prompt", [{"role": "user", "content": [{"type": "text", "text": "Sky?"}]}], "", Findings())
    [{'role': 'user', 'content': 'Sky?'}]
    """
    if isinstance(value, str):
        if not JSON_TEXT.match(value) or isinstance(value := _parsed(name, value), str):
            return value
        findings.add(JSON_MESSAGES, where)
    value = as_list(value)
    if not isinstance(value, list) or not value or not all(isinstance(message, Mapping) for message in value):
        return None
    return [_plain(name, message, where, findings) for message in value]


def looks_like_messages(value: Any) -> bool:
    """Return True for a list of messages, or a text that is JSON of one or seems to have been."""
    if isinstance(value, str):
        try:
            return bool(JSON_TEXT.match(value)) and not isinstance(_parsed("", value), str)
        except ValueError:
            return True
    value = as_list(value)
    return isinstance(value, list) and bool(value) and all(isinstance(message, Mapping) for message in value)


def as_list(value: Any) -> Any:
    """Return a tuple, an array or a tensor as a list, and anything else as it is.

    >>> as_list((1, 2)), as_list("ab")
    ([1, 2], 'ab')
    """
    if isinstance(value, tuple):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value


def content_text(text: Text) -> str:
    """Return a text, or the contents of messages, one a line.

    >>> content_text([{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}])
    'Sky?\\nBlue.'
    """
    if isinstance(text, str):
        return text
    return "\n".join(message.get("content", "") for message in text)


def joined(content: Any) -> str | None:
    """Return the text of a content: itself, or its text parts joined, without a separator as chat templates do.

    Returns:
        None for a content that is not text, or has a part that is not.
    """
    if isinstance(content, str):
        return content
    content = as_list(content)
    if not isinstance(content, list):
        return None
    parts = [_part(part) for part in content]
    return None if None in parts else "".join(map(str, parts))


def _part(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type", "text") != "text":
        return None
    given = {key for key, value in part.items() if value is not None}  # columnar files have every key in every part
    return part["text"] if given <= {"type", "text"} and isinstance(part.get("text"), str) else None


def _parsed(name: str, text: str) -> Any:
    """Return the messages of a text that is JSON of them; else the text, such as an answer that is other JSON."""
    try:
        value = parse(text)
    except ValueError as error:
        if (
            not text.lstrip().startswith("[")
            or _goes_on(text)
            or not any(all(f"{quote}{key}{quote}" in text for key in keys) for keys in KEYS for quote in "'\"")
        ):
            return text
        raise ValueError(f"{name}: expected JSON, got {text.strip()[:80]!r}: {error}") from None
    if isinstance(value, Mapping) and value.get("role") in ROLES and _are_messages([value]):
        raise ValueError(f"{name}: expected a list of messages, got one message: {text.strip()[:80]!r}")
    return plain({name: value})[name] if _are_messages(value) else text


def _goes_on(text: str) -> bool:
    """Return True for JSON that more text follows."""
    try:
        json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return False
    return not text.rstrip().endswith("]")


def _are_messages(value: Any) -> bool:
    pairs = [{*keys} for keys in (*KEYS, *(("role", key) for key in CONTENT_INSTEAD))]
    return isinstance(value, list) and all(
        isinstance(message, Mapping) and any(keys <= message.keys() for keys in pairs) for message in value
    )


def _plain(name: str, message: Mapping[str, Any], where: str, findings: Findings) -> Message:
    if message.keys() == PLAIN and isinstance(message["content"], str) and message["role"] in ROLES:
        return dict(message)
    given = {key: value for key, value in message.items() if value is not None}
    _check_role(name, given)
    findings.add(OTHER_ROLES, where, given["role"], count=given["role"] not in ROLES)
    _check_calls(name, given)
    content = given.get("content")
    if content is None and not any(given.get(key) for key in CONTENT_INSTEAD):
        raise ValueError(f"{name}: {_lacks_content(given)}")
    if content is None or isinstance(content, str):
        return given
    text = joined(content)
    if text is None:
        raise ValueError(f"{name}: expected the content of a message to be text, got {_not_text(content)!r:.80}")
    findings.add(PARTS_JOINED, where, text)
    return given | {"content": text}


def _check_role(name: str, message: Message) -> None:
    if "role" not in message and {"from", "value"} <= message.keys():
        raise ValueError(
            f"{name}: expected messages with 'role' and 'content', got 'from' and 'value' "
            f"({message['from']!r:.40}): rename them, with the roles system, user, assistant (human is user, gpt is "
            "assistant)"
        )
    if "role" not in message:
        raise ValueError(f"{name}: expected a message with 'role' and 'content', got {_keys(message)}")
    if not isinstance(message["role"], str):
        raise ValueError(f"{name}: expected the role of a message to be text, got {message['role']!r:.80}")


def _check_calls(name: str, message: Message) -> None:
    if message.get("function_call"):
        raise ValueError(f"{name}: expected the calls of a message in 'tool_calls', got 'function_call'")
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise ValueError(f"{name}: expected tool_calls to be a list of objects, got {calls!r:.80}")
    for function in (call["function"] for call in calls if "function" in call):
        if not (isinstance(function, Mapping) and isinstance(function.get("name"), str)):
            raise ValueError(
                f"{name}: expected the function of a call to be an object with a name, got {function!r:.80}"
            )


def _lacks_content(message: Message) -> str:
    for other in OTHER_NAMES:
        if other in message:
            return f"expected 'content' in the message of role {message['role']!r}, got {other!r}"
    return f"expected 'content' or tool calls in the message of role {message['role']!r}, got {_keys(message)}"


def _not_text(content: Any) -> Any:
    """Return the first part of a content that is not text, or the content if it has no parts."""
    parts = as_list(content)
    return next(part for part in parts if _part(part) is None) if isinstance(parts, list) else content


def _keys(message: Message) -> str:
    return "the keys " + ", ".join(map(repr, message)) if message else "an empty one"
