"""The parts of a rendered conversation that the policy writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from humanline_fused.training.data.tokenizing.encoding import Span
from humanline_fused.training.data.tokenizing.pieces import Piece
from humanline_fused.training.data.tokenizing.rendering import LONGEST_MARK, REFUSALS, Messages, Rendered, Template


def written_by_policy(
    template: Template, prompt: str, rendered: Rendered, pieces: Sequence[Piece], first: int
) -> list[Span] | None:
    """Return the parts of a conversation's text that the policy writes; None if it writes all of the completion.

    The template's ``{% generation %}`` tags decide. Without them an assistant's turn begins where the conversation
    before it, with the beginning of an answer, ends; and it ends with its end-of-turn token. What others wrote is cut
    out.

    Args:
        prompt: the text of the prompt.
        rendered: the conversation with its text.
        pieces: places of the written strings.
        first: index of the first message of the completion.
    """
    generated = template.generated(rendered)
    if generated is not None:
        return generated
    text, messages, variables = rendered.text, rendered.messages, rendered.variables
    start = template.differ_at(prompt, text)
    policy = [index for index in range(first, len(messages)) if messages[index]["role"] == "assistant"]
    others = [span for piece in pieces if piece.message not in policy for span in piece.spans if span[1] > start]
    if policy == [first] and len(messages) == first + 1 and not others:
        return None
    turns = []
    for index in policy:
        written = [piece.spans[0] for piece in pieces if piece.message == index and piece.spans]
        moved = any(written and span[0] < min(written)[0] for span in others)  # a part of the prompt is rendered later
        begin = _begin(template, text, messages[:index], variables, written) if index > first or moved else start
        last = index == len(messages) - 1
        end = len(text) if last else _end(template, text, messages[: index + 1], variables, written)
        if begin is not None and end is not None and begin < end:
            turns.append((begin, end))
    return _without(turns, others)


def _begin(
    template: Template, text: str, before: Messages, variables: Mapping[str, Any], written: Sequence[Span]
) -> int | None:
    """Return where a turn begins: where the beginning of an answer ends, or else at the first text written in it."""
    first = min(written)[0] if written else None
    asked = _rendered(template, before, variables, ask=True)
    if asked is None:
        return first
    begin = template.differ_at(asked, text)
    if begin < len(asked):  # answers may be asked for with more than the turn begins with, such as <think>
        told = _rendered(template, before, variables)
        if told is None or begin < len(told) or not asked.startswith(told):
            return first
    return begin if first is None or begin <= first else first


def _end(
    template: Template, text: str, until: Messages, variables: Mapping[str, Any], written: Sequence[Span]
) -> int | None:
    """Return where a turn ends: where its conversation would, or else after the last text written in it.

    The last turn of a conversation may have another end than this one.
    """
    told = _rendered(template, until, variables)
    last = max(end for _, end in written) if written else None
    if told is not None:
        same = template.differ_at(told, text)
        if same == len(told) and (last is None or same >= last):
            return same
        if last is None or text[last:same].strip():
            return same
    if last is None:
        return None
    start, end = max(written, key=lambda span: span[1])
    tail = told[told.rfind(text[start:end]) + end - start :] if told and text[start:end] in told else ""
    same = template.differ_at(tail, text[end : end + len(tail) + LONGEST_MARK])
    if same:
        return end + same
    mark = template.next_mark.match(text, end)
    return mark.end() if mark else end


def _rendered(template: Template, messages: Messages, variables: Mapping[str, Any], *, ask: bool = False) -> str | None:
    try:
        return template.render(messages, variables, ask=ask)
    except REFUSALS:  # a template's own checks of a part of a conversation
        return None


def _without(spans: Sequence[Span], removed: Sequence[Span]) -> list[Span]:
    """Return spans without their overlap with others.

    >>> _without([(0, 9)], [(2, 4)])
    [(0, 2), (4, 9)]
    """
    left = list(spans)
    for start, end in removed:
        left = [part for a, b in left for part in ((a, min(b, start)), (max(a, end), b)) if part[0] < part[1]]
    return left
