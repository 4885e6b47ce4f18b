"""The conversations of a row: its prompt, and its prompt with each completion."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from humanline_fused.training.data.tokenizing.rendering import REASONING, REFUSALS, Messages, Rendered, Template


@dataclass(frozen=True)
class Conversations:
    """The conversations to render for a row.

    Attributes:
        prompt: messages of the prompt.
        begun: True if the prompt's last message is an answer that the completions continue.
        wholes: messages of the prompt with each completion.
        first: index of the first message of the completions; with ``begun`` it begins in the prompt.
    """

    prompt: Messages
    begun: bool
    wholes: list[Messages]
    first: int


def conversations(prompt: Messages, completions: Sequence[Messages]) -> Conversations:
    """Return the conversations of a row. An answer begun in the prompt and its continuation are one message.

    Raises:
        ValueError: the begun answer has something besides content, or is continued by something besides content.
    """
    last = prompt[-1]
    if last.get("role") != "assistant":
        return Conversations(prompt, False, [prompt + completion for completion in completions], len(prompt))
    other = [key for key in (*REASONING, "tool_calls") if last.get(key)]
    if other:
        raise ValueError(f"expected a prompt that ends with the content of an answer, to go on with it, got {other[0]}")
    before, begun = prompt[:-1], str(last.get("content") or "")
    if not before and not begun:
        raise ValueError("expected a prompt with text, got an empty answer alone")
    if not begun:
        return Conversations(before, False, [before + completion for completion in completions], len(before))
    return Conversations(prompt, True, [[*before, *_continued(begun, whole)] for whole in completions], len(before))


def begun_prompt(
    template: Template, messages: Messages, variables: Mapping[str, Any], wholes: list[Rendered]
) -> Rendered:
    """Return a prompt that ends with the beginning of an answer, with its text.

    Args:
        template: the template.
        messages: the prompt.
        variables: other variables of the template.
        wholes: the prompt with each completion.

    Raises:
        ValueError: a whole conversation does not go on where the prompt ends.
    """
    last = messages[-1]
    begun = str(last["content"])
    before, _, reasoning = begun.rpartition("<think>")
    thinks = "<think>" in begun and "</think>" not in reasoning
    sampled = not wholes
    if sampled:  # an answer of our own shows whether the template goes on
        rest = f"{begun} No.{'</think> No.' * thinks}"
        wholes = [template.fit([*messages[:-1], {**last, "content": rest}], variables)]
    prompt = template.fit(messages, variables, begun="content")
    if all(whole.text.startswith(prompt.text) for whole in wholes):
        return prompt
    if thinks and not before.strip():  # some templates take reasoning apart, once its end is there
        with suppress(*REFUSALS):
            message = {**last, "content": "", REASONING[0]: reasoning.strip("\n")}
            apart = template.fit([*messages[:-1], message], variables, begun=REASONING[0])
            if all(whole.text.startswith(apart.text) for whole in wholes):
                return apart
    if sampled and thinks and prompt.text.startswith(template.render(messages[:-1], variables, ask=True)):
        return prompt  # the template leaves reasoning out later, which a sampled answer does not meet
    place = min(template.differ_at(prompt.text, whole.text) for whole in wholes)
    raise ValueError(
        "expected a template that goes on with the answer begun in the prompt, got one that leaves out "
        f"{prompt.text[place:]!r:.80} once it goes on"
    )


def _continued(begun: str, completion: Messages) -> Messages:
    first, *rest = completion
    for key in REASONING:
        if first.get(key):
            raise ValueError(f"expected content that continues the prompt's last message, got {key}")
    return [{**first, "content": begun + str(first.get("content") or "")}, *rest]
