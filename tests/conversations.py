"""Conversations of many shapes, to be written with any texts."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from humanline_fused.training.data.rows.records import UNPAIRED, Row

Messages = list[dict[str, Any]]
Write = Callable[..., str]
"""Gets a text, and the kind of its string; returns what is written in its place."""

WHERE = "data.jsonl, line 7"


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", **({} if text is None else {"content": text}), **more}


def tool(text: str) -> dict[str, Any]:
    return {"role": "tool", "name": "get_weather", "content": text, "tool_call_id": "abcdefghi"}


def call(write: Write, name: str = "get_weather", city: str = "Paris", *, as_json: bool = False) -> dict[str, Any]:
    arguments: Any = {"city": write(city, "call"), "days": 2}
    function = {"name": write(name, "call"), "arguments": json.dumps(arguments) if as_json else arguments}
    return {"id": "abcdefghi", "type": "function", "function": function}


def declared(write: Write) -> list[dict[str, Any]]:
    parameters = {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}}
    function = {"name": write("get_weather", "tool"), "description": "The weather.", "parameters": parameters}
    return [{"type": "function", "function": function}]


@dataclass(frozen=True)
class Shape:
    """A conversation as a function of what is written in place of its texts."""

    prompt: Callable[[Write], Messages]
    completion: Callable[[Write], Messages]
    tools: Callable[[Write], list[dict[str, Any]]] | None = None

    def row(self, write: Write) -> Row:
        """Return the conversation as a row."""
        template = {"tools": self.tools(write)} if self.tools else {}
        return Row(UNPAIRED, self.prompt(write), [self.completion(write)], [1.0], template)


SHAPES = {
    "a question": Shape(
        lambda t: [user(t("Is the sky green?"))], lambda t: [assistant(t("It is blue, and often grey."))]
    ),
    "a system message": Shape(
        lambda t: [system(t("Answer as briefly as you can.")), user(t("Is the sky green today?"))],
        lambda t: [assistant(t("No, it is as blue as ever."))],
    ),
    "short texts": Shape(
        lambda t: [system(t("Be brief.")), user(t("Is it?"))],
        lambda t: [assistant(t("No."))],
    ),
    "several turns": Shape(
        lambda t: [user(t("Is it green?")), assistant(t("No.")), user(t("Is it blue?"))],
        lambda t: [assistant(t("Yes."))],
    ),
    "a system message and several turns": Shape(
        lambda t: [system(t("Be brief.")), user(t("Is it?")), assistant(t("No.")), user(t("Is it blue?"))],
        lambda t: [assistant(t("Yes."))],
    ),
    "repeated texts": Shape(
        lambda t: [user(t("No.")), assistant(t("No.")), user(t("No."))],
        lambda t: [assistant(t("No."))],
    ),
    "texts that quote others": Shape(
        lambda t: [system(t("Repeat what the user says, in full.")), user(t("The sky is blue today, I think."))],
        lambda t: [assistant(t("You said: The sky is blue today, I think. Repeat what the user says, in full."))],
    ),
    "the answer in the question": Shape(
        lambda t: [user(t("Say: the sky is blue. And nothing else."))],
        lambda t: [assistant(t("the sky is blue."))],
    ),
    "words of templates": Shape(
        lambda t: [system(t("You are a helpful assistant.")), user(t("user"))],
        lambda t: [assistant(t("assistant"))],
    ),
    "white space around": Shape(
        lambda t: [system(t("  Be brief.\n")), user(t("\n\nIs it green? "))],
        lambda t: [assistant(t("  No, it is blue.  \n"))],
    ),
    "quotes, lines and signs": Shape(
        lambda t: [user(t("Is \"this\" <b>it</b> & 'that'?\n\n\tC:\\new «été» 晴れ 🌤"))],
        lambda t: [assistant(t('"No"\\n is {"not": "it"},\nbut “été” 🌈.'))],
    ),
    "reasoning in the content": Shape(
        lambda t: [user(t("Is it green?"))],
        lambda t: [assistant("<think>\n" + t("Let me think.", "reasoning") + "\n</think>\n\n" + t("No."))],
    ),
    "reasoning beside the content": Shape(
        lambda t: [user(t("Is it green?"))],
        lambda t: [assistant(t("No."), reasoning_content=t("Let me think.", "reasoning"))],
    ),
    "reasoning under two keys": Shape(
        lambda t: [user(t("Is it green?"))],
        lambda t: [assistant(t("No."), **dict.fromkeys(("reasoning", "reasoning_content"), t("Let me.", "reasoning")))],
    ),
    "reasoning of an earlier turn": Shape(
        lambda t: [
            user(t("Is it?")),
            assistant("<think>" + t("Look up.", "reasoning") + "</think>" + t("No.")),
            user(t("Why?")),
        ],
        lambda t: [assistant("<think>" + t("Physics.", "reasoning") + "</think>" + t("It scatters."))],
    ),
    "reasoning equal to the answer": Shape(
        lambda t: [user(t("Is it green?"))],
        lambda t: [assistant("<think>\n" + t("No.", "reasoning") + "\n</think>\n\n" + t("No."))],
    ),
    "an empty reasoning": Shape(
        lambda t: [user(t("Is it green?"))],
        lambda t: [assistant("<think>\n\n</think>\n\n" + t("No, certainly not."))],
    ),
    "a call": Shape(
        lambda t: [user(t("What is the weather?"))],
        lambda t: [assistant(t("I look it up."), tool_calls=[call(t)])],
        declared,
    ),
    "a call without content": Shape(
        lambda t: [user(t("What is the weather?"))], lambda t: [assistant(tool_calls=[call(t)])], declared
    ),
    "a call with empty content": Shape(
        lambda t: [user(t("What is the weather?"))], lambda t: [assistant("", tool_calls=[call(t)])]
    ),
    "a call with arguments as JSON": Shape(
        lambda t: [user(t("What is the weather?"))],
        lambda t: [assistant("", tool_calls=[call(t, city='the "old" town', as_json=True)])],
        declared,
    ),
    "a call with quotes in it": Shape(
        lambda t: [user(t("What is the weather?"))],
        lambda t: [assistant("", tool_calls=[call(t, city='the "old" town\nof Zürich')])],
        declared,
    ),
    "several calls": Shape(
        lambda t: [user(t("What is the weather?"))],
        lambda t: [assistant("", tool_calls=[call(t), call(t, city="Rome"), call(t, "get_time", "Rome")])],
        declared,
    ),
    "reasoning before a call": Shape(
        lambda t: [user(t("What is the weather?"))],
        lambda t: [assistant("", reasoning_content=t("I need a tool.", "reasoning"), tool_calls=[call(t)])],
        declared,
    ),
    "a tool's result": Shape(
        lambda t: [user(t("What is the weather?"))],
        lambda t: [assistant("", tool_calls=[call(t)]), tool(t("sunny")), assistant(t("It is sunny."))],
        declared,
    ),
    "a tool's result as JSON": Shape(
        lambda t: [user(t("What is the weather?"))],
        lambda t: [
            assistant("", tool_calls=[call(t)]),
            tool('{"sky": "' + t("blue") + '", "rain": null}'),
            assistant(t("It is blue.")),
        ],
        declared,
    ),
    "a tool's result in the prompt": Shape(
        lambda t: [user(t("What is the weather?")), assistant("", tool_calls=[call(t)]), tool(t("sunny in Paris"))],
        lambda t: [assistant(t("It is sunny in Paris."))],
        declared,
    ),
    "the user's turn in the completion": Shape(
        lambda t: [user(t("Is it green?"))],
        lambda t: [assistant(t("No.")), user(t("Is it blue?")), assistant(t("Yes, it is."))],
    ),
    "an answer begun": Shape(
        lambda t: [user(t("Is it green?")), assistant(t("The sky is"))],
        lambda t: [assistant(" " + t("as blue as ever."))],
    ),
    "a reasoning begun": Shape(
        lambda t: [user(t("Is it green?")), assistant("<think>\n" + t("Let me", "reasoning"))],
        lambda t: [assistant(" " + t("think.", "reasoning") + "\n</think>\n\n" + t("No."))],
    ),
    "tools alone": Shape(
        lambda t: [system(t("Be brief.")), user(t("Is it green?"))], lambda t: [assistant(t("No."))], declared
    ),
}


@dataclass
class Words:
    """Writes a long word in place of each text, and remembers which."""

    texts: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __call__(self, text: str, kind: str = "content") -> str:
        word = f"{chr(65 + len(self.texts))}vexillology"
        self.texts[word] = (text, kind)
        before, after = re.match(r"\s*", text)[0], re.search(r"\s*$", text)[0]  # pyright: ignore
        return before + word + after


def write_text(text: str, kind: str = "content") -> str:
    return text
