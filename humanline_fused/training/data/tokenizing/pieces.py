"""The places of what was written in the rendered text of a conversation."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from humanline_fused.training.data.tokenizing.encoding import Span
from humanline_fused.training.data.tokenizing.rendering import REASONING, REFUSALS, Rendered, Template, is_plain

LONG = 16
"""Characters of a text that is found in a rendering only where the template wrote it."""


@dataclass
class Piece:
    """A part of a written string, without white space at its ends and without special tokens.

    Attributes:
        message: index of its message; -1 for the tools.
        kind: "content", "reasoning", "call" or "tool".
        text: as written.
        spans: its places in the rendered text; empty if the template leaves it out.
        before: what stands before it in its string.
        quoted: True if a template may write it as JSON or Python would inside quotes.
        changed: the rendered text if it is another.
    """

    message: int
    kind: str
    text: str
    before: str = ""
    quoted: bool = False
    spans: list[Span] = field(default_factory=list)
    changed: str | None = None


def places(template: Template, rendered: Rendered) -> list[Piece]:
    """Return the written strings of a conversation with their places in its text.

    Long strings are searched for in order. If one is missing, or is too short for that, the conversation is rendered
    once more with nonces around every string: they tell the places apart from equal texts elsewhere.
    """
    return _searched(rendered) or _marked(template, rendered)


def _searched(rendered: Rendered) -> list[Piece] | None:
    if rendered.variables.get("tools") or not is_plain(rendered.messages):
        return None
    text, pieces, position = rendered.text, [], 0
    for index, message in enumerate(rendered.messages):
        core = str(message.get("content", "")).strip()
        if not core:
            continue
        start = text.find(core, position) if len(core) >= LONG else -1
        if start < 0:
            return None
        position = start + len(core)
        pieces.append(Piece(index, "content", core, spans=[(start, position)]))
    return pieces


def _marked(template: Template, rendered: Rendered) -> list[Piece]:
    text, variables = rendered.text, rendered.variables
    render = partial(template.render, ask=rendered.ask, begun=rendered.begun)
    nonces = _Nonces(text, template.marks)
    marked = [nonces.message(index, message) for index, message in enumerate(rendered.messages)]
    tools = {"tools": nonces.tools(variables["tools"])} if variables.get("tools") else {}
    try:
        plain = nonces.locate(render(marked, {**variables, **tools}))
    except REFUSALS:
        return _ordered(text, nonces.pieces)
    # A template may write the time, so that the first rendering is out of date.
    if plain != text and (len(plain) != len(text) or plain != render(rendered.messages, variables)):
        return _ordered(text, nonces.pieces)
    for piece in nonces.pieces:
        piece.changed = next((text[a:b] for a, b in piece.spans if text[a:b] not in _forms(piece)), None)
    return nonces.pieces


class _Nonces:
    """Puts nonces around the pieces of written strings."""

    def __init__(self, text: str, marks: re.Pattern[str]) -> None:
        self.pieces: list[Piece] = []
        self.marks = marks
        self.tag = "zq"
        while self.tag in text:
            self.tag += "x"

    def message(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message with nonces; its pieces are those of reasoning, content and calls, in this order."""
        marked, done = dict(message), {}
        for key in (*REASONING, "content"):
            text = message.get(key)
            if key in REASONING and text in done:  # the same reasoning under two keys
                marked[key] = done[text]
            elif isinstance(text, str):
                kind = "content" if key == "content" else "reasoning"
                marked[key] = done[text] = self._string(index, kind, text, str(message.get("role")))
        if isinstance(message.get("tool_calls"), list):
            marked["tool_calls"] = [self._function(index, "call", call) for call in message["tool_calls"]]
        return marked

    def tools(self, tools: Any) -> Any:
        """Return tools with nonces around their names."""
        return [self._function(-1, "tool", tool) for tool in tools]

    def _function(self, index: int, kind: str, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if isinstance(value.get("function"), Mapping):
            return {**value, "function": self._function(index, kind, value["function"])}
        marked = dict(value)
        if isinstance(value.get("name"), str):
            marked["name"] = self._piece(index, kind, value["name"], quoted=True)
        if isinstance(value.get("arguments"), str):
            marked["arguments"] = self._piece(index, kind, value["arguments"])
        elif "arguments" in value:
            marked["arguments"] = self._values(index, value["arguments"])
        return marked

    def _values(self, index: int, value: Any) -> Any:
        if isinstance(value, str):
            return self._piece(index, "call", value, quoted=True)
        if isinstance(value, Mapping):
            return {key: self._values(index, child) for key, child in value.items()}
        return [self._values(index, child) for child in value] if isinstance(value, list) else value

    def _string(self, index: int, kind: str, text: str, role: str) -> str:
        parts, position, thinking = [], 0, False
        for start, end in [*(match.span() for match in self.marks.finditer(text)), (len(text), len(text))]:
            closed = role == "assistant" and text[start:end] == "</think>"
            part = "reasoning" if thinking or closed else kind
            parts += [self._piece(index, part, text[position:start], role == "tool", text[:position]), text[start:end]]
            thinking = role == "assistant" and (text[start:end] == "<think>" or (thinking and not closed))
            position = end
        return "".join(parts)

    def _piece(self, index: int, kind: str, text: str, quoted: bool = False, before: str = "") -> str:
        core = text.strip()
        if not core:
            return text
        number, (left, right) = len(self.pieces), text.split(core, 1)
        self.pieces.append(Piece(index, kind, core, before, quoted))
        return f"{left}{self.tag}{number}a{core}{self.tag}{number}b{right}"

    def locate(self, rendered: str) -> str:
        """Set the pieces' places in a rendered text, and return it without nonces."""
        parts, length, end, opened = [], 0, 0, {}
        for match in re.finditer(rf"{self.tag}(\d+)([ab])", rendered):
            parts.append(rendered[end : match.start()])
            length += match.start() - end
            end, number = match.end(), int(match[1])
            if match[2] == "a":
                opened[number] = length
            elif number in opened:
                self.pieces[number].spans.append((opened.pop(number), length))
        return "".join([*parts, rendered[end:]])


def _forms(piece: Piece) -> list[str]:
    """Return the texts that a template may write for a piece."""
    text = piece.text
    if not piece.quoted:
        return [text]
    single = repr(text + '"')[1:-2]  # Python's quotes are double ones only in a text with single ones alone
    return [text, *(json.dumps(text, ensure_ascii=ascii)[1:-1] for ascii in (False, True)), repr(text)[1:-1], single]


def _find(text: str, piece: Piece, start: int) -> list[Span]:
    """Return the first place of a piece in a text from ``start`` on, in any of its forms."""
    found = [(text.find(form, start), form) for form in _forms(piece)]
    places = [(place, place + len(form)) for place, form in found if place >= 0]
    return [min(places)] if places else []


def _ordered(text: str, pieces: Sequence[Piece]) -> list[Piece]:
    """Search for pieces in the order of their messages; those of a system message and of tools anywhere."""
    position = 0
    for piece in pieces:
        first = piece.message <= 0
        piece.spans = _find(text, piece, 0 if first else position)
        if piece.spans and not first:
            position = piece.spans[0][1]
    return list(pieces)
