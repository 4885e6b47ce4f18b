"""The parts of a rendered conversation that the policy writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from humanline_fused.training.data.encoding import Span
from humanline_fused.training.data.pieces import Piece
from humanline_fused.training.data.rendering import REFUSALS, Messages, Rendered, Template


def written_by_policy(
    template: Template, rendered: Rendered, pieces: Sequence[Piece], *, first: int, start: int
) -> list[Span] | None:
    """Return the parts of a conversation's text that the policy writes; None if it writes all of the completion.

    The template's ``{% generation %}`` tags decide. Without them an assistant's turn begins where the conversation
    before it, with the beginning of an answer, ends; and it ends with its end-of-turn token. What others wrote is cut
    out.

    Args:
        rendered: the conversation with its text.
        pieces: places of the written strings.
        first: index of the first message of the completion.
        start: position at which the completion begins.
    """
    generated = template.generated(rendered)
    if generated is not None:
        return generated
    text, messages, variables = rendered.text, rendered.messages, rendered.variables
    policy = [index for index in range(first, len(messages)) if messages[index]["role"] == "assistant"]
    others = [span for piece in pieces if piece.message not in policy for span in piece.spans if span[1] > start]
    if len(policy) == len(messages) - first and not others:
        return None
    turns = []
    for index in policy:
        places = [span for piece in pieces if piece.message == index for span in piece.spans]
        moved = any(places and span[0] < min(places)[0] for span in others)  # a part of the prompt is rendered later
        begins_it = index == first and not moved
        begin = start if begins_it else _begin(template, text, messages[:index], variables, places)
        end = (
            len(text) if index == len(messages) - 1 else _end(template, text, messages[: index + 1], variables, places)
        )
        if begin is not None and end is not None and begin < end:
            turns.append((begin, end))
    return _without(turns, others)


def _begin(
    template: Template, text: str, before: Messages, variables: Mapping[str, Any], places: Sequence[Span]
) -> int | None:
    """Return where a turn begins: after the conversation before it, or else at the first text written in it."""
    asked = _rendered(template, before, variables, ask=True)
    if asked is not None and text.startswith(asked) and (not places or len(asked) <= min(places)[0]):
        return len(asked)
    return min(places)[0] if places else None


def _end(
    template: Template, text: str, until: Messages, variables: Mapping[str, Any], places: Sequence[Span]
) -> int | None:
    """Return where a turn ends: with the conversation up to it, or else after the last text written in it."""
    told = _rendered(template, until, variables)
    written = max(end for _, end in places) if places else None
    if told is not None and text.startswith(told) and (written is None or len(told) >= written):
        return len(told.rstrip())
    if written is None:
        return None
    mark = template.next_mark.match(text, written)  # the last turn of a conversation may have another end than this one
    return mark.end() if mark else written


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
