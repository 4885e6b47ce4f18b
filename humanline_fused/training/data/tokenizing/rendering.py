"""Rendering of conversations with a chat template."""

import copy
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Lock
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from humanline_fused.training.data.prefix import common_length
from humanline_fused.training.data.tokenizing.encoding import Span

Messages = list[dict[str, Any]]

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message's reasoning; transformers copies the first that is there to the others."""

REFUSALS = (ValueError, TypeError, ArithmeticError, TemplateError)
"""Errors of a template that does not take a conversation."""

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The tag of a template that marks what the model generates."""


@dataclass(frozen=True)
class Rendered:
    """A conversation and its text.

    Attributes:
        text: the text.
        messages: the conversation, with the arguments of its calls in the form that the template takes.
        variables: other variables of the template.
        ask, begun: as in :meth:`Template.render`.
    """

    text: str
    messages: Messages
    variables: Mapping[str, Any]
    ask: bool = False
    begun: str = ""


LONGEST_MARK = 80
"""Characters of the longest special token that is looked for where two texts differ."""

_RENDERING = Lock()
"""transformers notes what is generated in an object that all threads share."""


class Template:
    """The chat template of a tokenizer.

    Args:
        tokenizer: the tokenizer.
        marks: matches the tokens that templates treat apart in a text, such as ``<think>``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, marks: re.Pattern[str]) -> None:
        self.tokenizer = tokenizer
        self.marks = re.compile(f"{marks.pattern}|</?think>")
        self.next_mark = re.compile(rf"\s*(?:{self.marks.pattern})")
        self._marking: dict[str, bool] = {}

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

    def render(self, messages: Messages, variables: Mapping[str, Any], *, ask: bool = False, begun: str = "") -> str:
        """Return the text of a conversation.

        Args:
            messages: the conversation.
            variables: other variables of the template.
            ask: end with the beginning of an answer.
            begun: key of the last message's text, if it is the beginning of an answer: leave its end out.

        Raises:
            ValueError, TypeError, TemplateError: the template does not take the messages.
        """
        settings: dict[str, Any] = {
            "tokenize": False,
            "add_generation_prompt": ask,
            "continue_final_message": begun or False,
        }
        with _RENDERING:
            if self._plain is not None and not (begun or variables) and is_plain(messages):
                return self._plain(messages=messages, add_generation_prompt=ask)
            return self.tokenizer.apply_chat_template(messages, **(settings | dict(variables)))  # pyright: ignore

    def fit(self, messages: Messages, variables: Mapping[str, Any], *, ask: bool = False, begun: str = "") -> Rendered:
        """Return a conversation with its text, in a form that the template takes.

        Templates take the arguments of a call as an object, as JSON text, or as both; the other one is converted.

        Args:
            messages, variables, ask, begun: as in :meth:`render`.

        Raises:
            ValueError, TypeError, TemplateError: the template does not take the messages.
        """
        try:
            return self._rendered(messages, variables, ask, begun)
        except REFUSALS as error:
            refusal = error
        for other in (_with_arguments(messages, as_text) for as_text in (False, True)):
            if other != messages:
                with suppress(*REFUSALS):
                    return self._rendered(other, variables, ask, begun)
        raise refusal

    def _rendered(self, messages: Messages, variables: Mapping[str, Any], ask: bool, begun: str) -> Rendered:
        return Rendered(self.render(messages, variables, ask=ask, begun=begun), messages, variables, ask, begun)

    def differ_at(self, first: str, second: str) -> int:
        """Return the length of the common beginning of two texts; a token that templates write differs as a whole."""
        if second.startswith(first):
            return len(first)
        start = common_length(first, second)
        near = max(0, start - LONGEST_MARK), start + LONGEST_MARK
        marks = [match.span() for text in (first, second) for match in self.marks.finditer(text, *near)]
        return min([start, *(begin for begin, end in marks if begin < start < end)])

    def generated(self, rendered: Rendered) -> list[Span] | None:
        """Return the parts of a conversation's text that the template marks as generated; None if it marks none."""
        messages, variables = rendered.messages, rendered.variables
        source = self.source(variables)
        if source not in self._marking:
            self._marking[source] = bool(GENERATION.search(source))
        if not self._marking[source]:
            return None
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        given = {**self.tokenizer.special_tokens_map, **variables}
        with _RENDERING:
            marked: Any = render_jinja_template(
                [plain], chat_template=source, return_assistant_tokens_mask=True, **given
            )
        _, (spans,) = marked
        return [(start, end) for start, end in spans]


def is_plain(messages: Messages) -> bool:
    """Return True for messages of nothing but roles and texts."""
    return all(message.keys() <= {"role", "content"} for message in messages)


def _with_arguments(messages: Messages, as_text: bool) -> Messages:
    """Return messages with the arguments of all calls as JSON text, or as objects where their text is JSON."""
    changed = copy.deepcopy(messages)
    for message in changed:
        for call in message.get("tool_calls") or []:
            function = call.get("function", call)
            given = function.get("arguments")
            if as_text and isinstance(given, dict | list):
                function["arguments"] = json.dumps(given, ensure_ascii=False)
            elif not as_text and isinstance(given, str):
                with suppress(ValueError):
                    function["arguments"] = json.loads(given)
    return changed
