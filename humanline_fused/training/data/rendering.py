"""Rendering of conversations with a chat template, and the places of what was written in the rendered text."""

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from humanline_fused.training.data.encoding import Span

Messages = list[dict[str, Any]]

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message's reasoning; transformers copies the first that is there to the others."""

REFUSALS = (ValueError, TypeError, TemplateError)
"""Errors of a template that does not take a conversation."""

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The tag of a template that marks what the model generates."""

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
        changed: the rendered text if it is another.
    """

    message: int
    kind: str
    text: str
    spans: list[Span] = field(default_factory=list)
    changed: str | None = None


class Template:
    """The chat template of a tokenizer.

    Args:
        tokenizer: the tokenizer.
        marks: matches the tokens that templates treat apart in a text, such as ``<think>``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, marks: re.Pattern[str]) -> None:
        self.tokenizer = tokenizer
        self.marks = re.compile(f"{marks.pattern}|</?think>")
        self._marking: dict[str, bool] = {}
        self.next_mark = re.compile(rf"\s*(?:{self.marks.pattern})")

    @cached_property
    def _plain(self) -> Callable[..., str] | None:
        """The function that renders plain messages, without the conversions of ``apply_chat_template`` for others.

        None if the tokenizer renders in its own way, or has several templates.
        """
        tokenizer = self.tokenizer
        own = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
        if own or not isinstance(tokenizer.chat_template, str):
            return None
        template = _compile_jinja_template(tokenizer.chat_template)
        return partial(template.render, tools=None, documents=None, **tokenizer.special_tokens_map)

    def source(self, variables: Mapping[str, Any]) -> str:
        """Return the template's text, which may depend on whether there are tools."""
        return self.tokenizer.get_chat_template(tools=variables.get("tools"))

    def render(
        self, messages: Messages, variables: Mapping[str, Any], *, ask: bool = False, begun: bool = False
    ) -> str:
        """Return the text of a conversation.

        Args:
            messages: the conversation.
            variables: other variables of the template.
            ask: end with the beginning of an answer.
            begun: the last message is an answer that goes on: leave its end out.

        Raises:
            ValueError, TypeError, TemplateError: the template does not take the messages.
        """
        if self._plain is not None and not (begun or variables) and is_plain(messages):
            return self._plain(messages=messages, add_generation_prompt=ask)
        settings: dict[str, Any] = {"tokenize": False, "add_generation_prompt": ask, "continue_final_message": begun}
        try:
            return self._apply(messages, settings | dict(variables))
        except REFUSALS:
            other = _other_arguments(messages)
            if other is None:
                raise
        return self._apply(other, settings | dict(variables))

    def _apply(self, messages: Messages, settings: dict[str, Any]) -> str:
        return self.tokenizer.apply_chat_template(messages, **settings)  # pyright: ignore[reportReturnType]

    def generated(self, messages: Messages, variables: Mapping[str, Any]) -> list[Span] | None:
        """Return the parts of a conversation's text that the template marks as generated; None if it marks none."""
        source = self.source(variables)
        if source not in self._marking:
            self._marking[source] = bool(GENERATION.search(source))
        if not self._marking[source]:
            return None
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        given = {**self.tokenizer.special_tokens_map, **variables}
        _, spans = render_jinja_template([plain], chat_template=source, return_assistant_tokens_mask=True, **given)
        return [(start, end) for start, end in spans[0]]

    def places(self, text: str, messages: Messages, variables: Mapping[str, Any]) -> list[Piece]:
        """Return the written strings of a conversation with their places in its text.

        Long strings are searched for in order. If one is missing, or is too short for that, the conversation is
        rendered once more with nonces around every string: they tell the places apart from equal texts elsewhere.
        """
        return self._searched(text, messages, variables) or self._marked(text, messages, variables)

    def _searched(self, text: str, messages: Messages, variables: Mapping[str, Any]) -> list[Piece] | None:
        pieces, position = [], 0
        if variables.get("tools") or not is_plain(messages):
            return None
        for index, message in enumerate(messages):
            core = str(message.get("content", "")).strip()
            if not core:
                continue
            start = text.find(core, position) if len(core) >= LONG else -1
            if start < 0:
                return None
            position = start + len(core)
            pieces.append(Piece(index, "content", core, [(start, position)]))
        return pieces

    def _marked(self, text: str, messages: Messages, variables: Mapping[str, Any]) -> list[Piece]:
        nonces = _Nonces(text, self.marks)
        marked = [nonces.message(index, message) for index, message in enumerate(messages)]
        tools = {"tools": nonces.tools(variables["tools"])} if variables.get("tools") else {}
        try:
            plain = nonces.locate(self.render(marked, {**variables, **tools}))
        except REFUSALS:
            return _ordered(text, [*nonces.pieces, *nonces.unmarked])
        # A template may write the time, so that the first rendering is out of date.
        if plain != text and (plain != self.render(messages, variables) or len(plain) != len(text)):
            return _ordered(text, [*nonces.pieces, *nonces.unmarked])
        for piece in nonces.pieces:
            piece.changed = next((text[a:b] for a, b in piece.spans if text[a:b] not in _forms(piece)), None)
        for piece in nonces.unmarked:
            piece.spans = _find(text, piece, 0)
        return [*nonces.pieces, *nonces.unmarked]


def is_plain(messages: Messages) -> bool:
    """Return True for messages of nothing but roles and texts."""
    return all(message.keys() <= {"role", "content"} for message in messages)


class _Nonces:
    """Puts nonces around the pieces of written strings."""

    def __init__(self, text: str, marks: re.Pattern[str]) -> None:
        self.pieces: list[Piece] = []
        self.unmarked: list[Piece] = []
        self.marks = marks
        self.tag = "zq"
        while self.tag in text:
            self.tag += "x"

    def message(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message with nonces; its pieces are those of reasoning, content and calls, in this order."""
        marked = dict(message)
        for key in (*REASONING, "content"):
            if isinstance(message.get(key), str):
                kind = "content" if key == "content" else "reasoning"
                marked[key] = self._string(index, kind, message[key], message.get("role") == "assistant")
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
            marked["name"] = self._piece(index, kind, value["name"])
        if isinstance(value.get("arguments"), Mapping):
            marked["arguments"] = self._values(index, value["arguments"])
        elif isinstance(value.get("arguments"), str):  # JSON, which a template may parse
            self.unmarked.append(Piece(index, kind, value["arguments"]))
        return marked

    def _values(self, index: int, value: Any) -> Any:
        if isinstance(value, str):
            return self._piece(index, "call", value)
        if isinstance(value, Mapping):
            return {key: self._values(index, child) for key, child in value.items()}
        return [self._values(index, child) for child in value] if isinstance(value, list) else value

    def _string(self, index: int, kind: str, text: str, reasons: bool = False) -> str:
        parts, position, thinking = [], 0, False
        for start, end in [*(match.span() for match in self.marks.finditer(text)), (len(text), len(text))]:
            closed = reasons and text[start:end] == "</think>"
            parts += [
                self._piece(index, "reasoning" if thinking or closed else kind, text[position:start]),
                text[start:end],
            ]
            thinking = reasons and (text[start:end] == "<think>" or (thinking and not closed))
            position = end
        return "".join(parts)

    def _piece(self, index: int, kind: str, text: str) -> str:
        core = text.strip()
        if not core:
            return text
        number, (before, after) = len(self.pieces), text.split(core, 1)
        self.pieces.append(Piece(index, kind, core))
        return f"{before}{self.tag}{number}a{core}{self.tag}{number}b{after}"

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
    """Return the texts that a template may write for a piece: inside calls and tools also as JSON or Python."""
    text = piece.text
    if piece.kind not in ("call", "tool"):
        return [text]
    forms = [text, *(json.dumps(text, ensure_ascii=ascii)[1:-1] for ascii in (False, True)), repr(text)[1:-1]]
    try:
        value = json.loads(text)
    except ValueError:
        return forms
    separators = ((", ", ": "), (",", ":"))
    forms += [json.dumps(value, ensure_ascii=False, separators=pair) for pair in separators]
    return [*forms, *(json.dumps(form, ensure_ascii=False)[1:-1] for form in forms[-2:]), repr(value)]


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


def _other_arguments(messages: Messages) -> Messages | None:
    """Return messages with the arguments of their calls as JSON text instead of objects, or the other way round.

    Templates take one or the other. None if there are no calls, or their text is no JSON.
    """
    if not any(message.get("tool_calls") for message in messages):
        return None
    changed = copy.deepcopy(messages)
    for message in changed:
        for call in message.get("tool_calls") or []:
            function = call.get("function", call)
            given = function.get("arguments")
            try:
                function["arguments"] = json.loads(given) if isinstance(given, str) else json.dumps(given)
            except ValueError:
                return None
    return changed
