"""The render check: what a chat template made of a conversation, compared with what was written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from humanline_fused.training.data.findings import (
    ANSWER_CONTINUED,
    ANSWER_OPENED,
    CALLS_LOST,
    EARLIER_REASONING,
    LOST_IN_BOTH,
    NO_END,
    NO_STOP,
    PROMPT_END_LOST,
    PROMPT_LOST,
    QUESTION_MOVED,
    REASONING_LOST,
    SPECIAL_IN_TEXT,
    TEXT_CHANGED,
    TEXT_LOST,
    Cause,
    Findings,
)
from humanline_fused.training.data.tokenizing.conversation import Conversations
from humanline_fused.training.data.tokenizing.encoding import Encoder, Span
from humanline_fused.training.data.tokenizing.pieces import Piece, places
from humanline_fused.training.data.tokenizing.rendering import REASONING, Messages, Rendered, Template


@dataclass(frozen=True)
class RenderCheck:
    """Counts what the template leaves out of conversations, changes in them, or adds to them.

    Attributes:
        ends: texts of the stop tokens.
    """

    template: Template
    encoder: Encoder
    ends: Sequence[str]
    findings: Findings

    def prompt(self, where: str, prompt: Rendered, given: Conversations) -> None:
        """Check a prompt that is sampled from."""
        self._check_begun(where, given)
        self._check_special(where, given.prompt)
        for piece in places(self.template, prompt):
            if not piece.spans:
                self.findings.add(_lost_in_both(piece), where, piece.text)
            self._check_changed(where, piece)

    def completions(
        self,
        where: str,
        prompt: Rendered,
        wholes: Sequence[Rendered],
        pieces: Sequence[Sequence[Piece]],
        kept: Sequence[Sequence[Span] | None],
        given: Conversations,
    ) -> None:
        """Check a prompt with its completions.

        Args:
            prompt, wholes: the rendered prompt, and the rendered prompt with each completion.
            pieces: places of the written strings in ``wholes``.
            kept: parts of ``wholes`` that the policy writes; None if it writes all of the completion.
        """
        self._check_begun(where, given)
        self._check_special(where, given.prompt[: given.first])
        left_out = []
        for index, (whole, written) in enumerate(zip(wholes, pieces, strict=True)):
            self._check_special(where, whole.messages[given.first :])
            asked = [piece for piece in written if piece.message < given.first]
            answers = [piece for piece in written if piece.message >= given.first]
            if not index:
                self._check_asked(where, prompt, whole.text, asked)
            left_out.append(self._check_start(where, prompt.text, whole, asked, answers))
            self._check_answers(where, answers)
            self._check_end(where, whole.text, answers, kept[index])
        if end := max(left_out, key=len):
            self.findings.add(PROMPT_END_LOST, where, end)

    def _check_begun(self, where: str, given: Conversations) -> None:
        self.findings.add(ANSWER_CONTINUED, where, str(given.prompt[-1].get("content")), int(given.begun))

    def _check_special(self, where: str, messages: Messages) -> None:
        for message in messages:
            for key in ("content", *REASONING, "tool_calls"):
                for text in _strings(message.get(key)):
                    if found := self.encoder.special.search(text):
                        self.findings.add(SPECIAL_IN_TEXT, where, found[0])

    def _check_changed(self, where: str, piece: Piece) -> None:
        if piece.changed is not None:
            self.findings.add(TEXT_CHANGED, where, f"{piece.text} -> {piece.changed}")

    def _check_asked(self, where: str, prompt: Rendered, whole: str, asked: Sequence[Piece]) -> None:
        lost = [piece for piece in asked if not piece.spans]
        sampled: set[tuple[int, str, str]] = set()
        if lost and not whole.startswith(prompt.text):
            sampled = {_key(piece) for piece in places(self.template, prompt) if piece.spans}
        for piece in lost:
            cause = PROMPT_LOST if _key(piece) in sampled else _lost_in_both(piece)
            self.findings.add(cause, where, piece.text)
        for piece in asked:
            self._check_changed(where, piece)

    def _check_start(
        self, where: str, prompt: str, whole: Rendered, asked: Sequence[Piece], answers: Sequence[Piece]
    ) -> str:
        """Check what is between prompt and answer; return the end of the prompt that is not there."""
        start = self.template.differ_at(prompt, whole.text)
        behind = [piece.text for piece in asked if any(end > start for _, end in piece.spans)]
        found = min(
            ((piece.spans[0][0], piece) for piece in answers if piece.spans), default=None, key=lambda one: one[0]
        )
        if behind:
            self.findings.add(QUESTION_MOVED, where, behind[0])
            return ""
        if start == len(prompt) and found:
            place, piece = found
            opening, message = whole.text[start:place], whole.messages[piece.message]
            # Calls, and reasoning under its own key, need words around them. An empty reasoning is no such words.
            apart = piece.kind == "call" or (piece.kind == "reasoning" and any(message.get(key) for key in REASONING))
            needed = apart and "</think>" not in opening
            if not needed and not piece.before.rstrip().endswith(opening.strip()):
                self.findings.add(ANSWER_OPENED, where, opening)
        return prompt[start:]

    def _check_answers(self, where: str, answers: Sequence[Piece]) -> None:
        causes = {"reasoning": REASONING_LOST, "call": CALLS_LOST}
        lost = {causes.get(piece.kind, TEXT_LOST): piece.text for piece in reversed(answers) if not piece.spans}
        for cause, text in lost.items():
            self.findings.add(cause, where, text)
        for piece in answers:
            self._check_changed(where, piece)

    def _check_end(self, where: str, whole: str, answers: Sequence[Piece], kept: Sequence[Span] | None) -> None:
        spans = [span for piece in answers for span in piece.spans]
        if kept is not None:
            spans = [(start, end) for start, end in spans if any(a <= start and end <= b for a, b in kept)]
        last = max((end for _, end in spans), default=0)
        tail = whole[last:] if kept is None else "".join(whole[max(start, last) : end] for start, end in kept)
        if not self.ends:
            self.findings.add(NO_END, where)
        elif not any(end in tail for end in self.ends):
            self.findings.add(NO_STOP, where, tail.strip())


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for child in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(child)


def _key(piece: Piece) -> tuple[int, str, str]:
    return piece.message, piece.kind, piece.text


def _lost_in_both(piece: Piece) -> Cause:
    return EARLIER_REASONING if piece.kind == "reasoning" else LOST_IN_BOTH
