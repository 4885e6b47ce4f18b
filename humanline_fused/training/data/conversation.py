"""The conversations of a row: its prompt, and its prompt with each completion."""

from collections.abc import Sequence
from dataclasses import dataclass

from humanline_fused.training.data.rendering import REASONING, Messages


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


def _continued(begun: str, completion: Messages) -> Messages:
    first, *rest = completion
    for key in REASONING:
        if first.get(key):
            raise ValueError(f"expected content that continues the prompt's last message, got {key}")
    return [{**first, "content": begun + str(first.get("content") or "")}, *rest]
