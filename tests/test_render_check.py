"""The render check on a grid of conversations and templates: what it says is lost is lost, and nothing else is.

The truth does not come from the check: every conversation is rendered a second time with a long word in place of each
text, and a text is in a rendering if its word is.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from humanline_fused.training.data.findings import (
    ANSWER_CONTINUED,
    ANSWER_OPENED,
    CALLS_LOST,
    EARLIER_REASONING,
    LOST_IN_BOTH,
    PROMPT_END_LOST,
    PROMPT_LOST,
    QUESTION_MOVED,
    REASONING_LOST,
    TEXT_CHANGED,
    TEXT_LOST,
)
from humanline_fused.training.data.forms import LABELS
from humanline_fused.training.data.tokenizing.conversation import Conversations, begun_prompt, conversations
from humanline_fused.training.data.tokenizing.pieces import Piece, places
from humanline_fused.training.data.tokenizing.rendering import REFUSALS
from humanline_fused.training.data.tokenizing.tokenization import RowTokenizer, Tokenised
from tests.chat_templates import MARK, PLAIN_MARKS, TEMPLATES, tokenizer
from tests.conversations import SHAPES, WHERE, Words, write_text

MARKS = re.compile("|".join([MARK.pattern, *map(re.escape, PLAIN_MARKS)]))
CHECKED = (
    TEXT_LOST,
    REASONING_LOST,
    CALLS_LOST,
    PROMPT_LOST,
    LOST_IN_BOTH,
    EARLIER_REASONING,
    TEXT_CHANGED,
    QUESTION_MOVED,
    PROMPT_END_LOST,
    ANSWER_OPENED,
    ANSWER_CONTINUED,
)


@dataclass
class Truth:
    """A conversation with words in place of its texts: renderings, and the texts of each message."""

    given: Conversations
    prompt: str
    whole: str
    texts: dict[str, tuple[str, str]]

    def message_of(self, word: str) -> int:
        """Return the index of the message with a word in the whole conversation; -1 if the tools have it."""
        return next((i for i, message in enumerate(self.given.wholes[0]) if word in json.dumps(message)), -1)


@cache
def row_tokenizer(name: str, **settings: Any) -> RowTokenizer:
    return RowTokenizer(tokenizer(name), LABELS, **settings)


@cache
def truth_of(name: str, title: str) -> Truth:
    words = Words()
    row = SHAPES[title].row(words)
    template = row_tokenizer(name).template
    given = conversations(row.prompt, row.completions)  # pyright: ignore[reportArgumentType]
    whole = template.fit(given.wholes[0], row.template)
    if given.begun:
        prompt = begun_prompt(template, given.prompt, row.template, [whole])
    else:
        prompt = template.fit(given.prompt, row.template, ask=True)
    return Truth(given, prompt.text, whole.text, words.texts)


@cache
def done(name: str, title: str) -> Tokenised:
    return row_tokenizer(name)([(WHERE, SHAPES[title].row(write_text))])


def taken() -> Iterator[tuple[str, str]]:
    """Yield the templates and shapes that go together."""
    for name, title in product(TEMPLATES, SHAPES):
        if not isinstance(done(name, title).rows[0], ValueError):
            yield name, title


def forms(text: str) -> set[str]:
    """Return a text as a template may write it in quotes."""
    return {
        text.strip(),
        *(json.dumps(text.strip(), ensure_ascii=ascii)[1:-1] for ascii in (False, True)),
        repr(text.strip() + '"')[1:-2],
    }


def pieces_of(pieces: list[Piece], message: int, text: str, kind: str) -> list[Piece]:
    """Return the pieces that stand for a text of a message."""
    return [
        piece
        for piece in pieces
        if piece.message == message
        and (piece.kind == kind or "<think>" in piece.text)
        and any(form in piece.text for form in forms(text))
    ]


def begins_at(prompt: str, whole: str) -> int:
    """Return where two texts differ; a special token differs as a whole."""
    start = next(
        (i for i, pair in enumerate(zip(prompt, whole, strict=False)) if len(set(pair)) > 1),
        min(len(prompt), len(whole)),
    )
    return min(
        [start, *(m.start() for text in (prompt, whole) for m in MARKS.finditer(text) if start in range(*m.span()))]
    )


def expected(truth: Truth, whole: str) -> Counter[str]:
    """Return what there is to say about a conversation, each cause by its own definition."""
    first, found = truth.given.first, Counter()
    message = {word: truth.message_of(word) for word in truth.texts}
    asked = [word for word in truth.texts if message[word] < first]
    answer = [word for word in truth.texts if message[word] >= first]
    for word in asked:
        if word not in truth.whole:
            reasoning = truth.texts[word][1] == "reasoning"
            cause = EARLIER_REASONING if reasoning else LOST_IN_BOTH
            found[(PROMPT_LOST if word in truth.prompt else cause).name] += 1
    lost = {truth.texts[word][1] for word in answer if word not in truth.whole}
    found.update({"content": TEXT_LOST, "reasoning": REASONING_LOST, "call": CALLS_LOST}[kind].name for kind in lost)
    for word, (text, kind) in truth.texts.items():
        role = truth.given.wholes[0][message[word]]["role"] if message[word] >= 0 else "tool"
        quoted = kind in ("call", "tool") or role == "tool"
        there = any(form in whole for form in (forms(text) if quoted else {text.strip()}))
        found[TEXT_CHANGED.name] += word in truth.whole and not there
    start = begins_at(truth.prompt, truth.whole)
    places = sorted((truth.whole.index(word), word) for word in answer if word in truth.whole)
    if any(truth.whole.rfind(word) >= start for word in asked):
        found[QUESTION_MOVED.name] = 1
    elif start < len(truth.prompt):
        found[PROMPT_END_LOST.name] = 1
    elif places:
        place, word = places[0]
        opening, kind = truth.whole[start:place].strip(), truth.texts[word][1]
        answer = truth.given.wholes[0][message[word]]
        apart = kind == "call" or (kind == "reasoning" and "reasoning_content" in answer)
        alien = not apart or "</think>" in opening
        found[ANSWER_OPENED.name] = alien and not answer.get("content", "").split(word)[0].rstrip().endswith(opening)
    found[ANSWER_CONTINUED.name] = truth.given.begun
    return +found


def test_a_template_that_refuses_a_conversation_is_a_refusal_with_row_and_reason():
    refusals = 0
    for name, title in product(TEMPLATES, SHAPES):
        (row,) = done(name, title).rows
        try:
            truth_of(name, title)
        except REFUSALS:
            refusals += 1
            assert isinstance(row, ValueError), (name, title)
            assert re.match(rf"{WHERE}: .*: .+", str(row)), (name, title, row)
        else:
            assert not isinstance(row, ValueError), (name, title, row)
    print(f"{refusals} of {len(TEMPLATES) * len(SHAPES)} conversations refused")


def test_each_written_text_is_found_or_lost_as_its_word_is():
    counts = Counter()
    for name, title in taken():
        truth, row = truth_of(name, title), SHAPES[title].row(write_text)
        template = row_tokenizer(name).template
        given = conversations(row.prompt, row.completions)  # pyright: ignore[reportArgumentType]
        whole = template.fit(given.wholes[0], row.template)
        rendered = [(whole, truth.whole)]
        if not given.begun:
            rendered.append((template.fit(given.prompt, row.template, ask=True), truth.prompt))
        for text, words in rendered:
            pieces, there = places(template, text), Counter()
            for word, (written, kind) in truth.texts.items():
                if truth.message_of(word) < len(text.messages):
                    there[truth.message_of(word), written, kind] += word in words
                    counts["strings"] += 1
                    counts["lost"] += word not in words
            for key, number in there.items():
                said = sum(bool(piece.spans) for piece in pieces_of(pieces, *key))
                counts["misses"] += max(said - number, 0)
                counts["false alarms"] += max(number - said, 0)
                if said != number:
                    print(name, "|", title, "|", key, f"in the text {number} times, found {said} times")
    print(dict(counts))
    assert (counts["misses"], counts["false alarms"]) == (0, 0)


def test_the_findings_are_those_of_the_words():
    counts = Counter()
    for name, title in taken():
        row = SHAPES[title].row(write_text)
        given = conversations(row.prompt, row.completions)  # pyright: ignore[reportArgumentType]
        whole = row_tokenizer(name).template.fit(given.wholes[0], row.template).text
        right = expected(truth_of(name, title), whole)
        found = done(name, title).findings
        said = Counter({cause.name: found.count(cause) for cause in CHECKED if found.count(cause)})
        counts += right
        if said != right:
            counts["wrong"] += 1
            print(name, "|", title, "| missed", dict(right - said), "| false", dict(said - right))
    print(dict(counts))
    assert not counts["wrong"]


TEXTS = [
    "a",
    "No.",
    "user",
    "assistant",
    "system",
    "tool",
    "name",
    "functions",
    "true",
    "null",
    "1",
    "t",
    '"',
    "'",
    "{",
    "}",
    "[",
    "]",
    "|",
    "<",
    "<|",
    "»",
    "晴",
    "🌈",
    "\\n",
    "&amp;",
    "<b>",
    "zq0a",
    "C:\\new",
    "Paris",
]
TEXTS += [
    "Be brief.",
    "{{ x }}",
    "- a\n- b",
    "You are a helpful assistant.",
    "The sky is blue today, I think, and the sea.",
]
APART = ("mistral_v3", "a call with arguments as JSON")
"""Of these the truth depends on the texts: equal texts at the beginning, and quotes in JSON."""


@settings(max_examples=150, deadline=None)
@example("deepseek_r1_distill", "reasoning of an earlier turn", ["a"] * 9)
@given(
    name=st.sampled_from([name for name in TEMPLATES if name not in APART]),
    title=st.sampled_from([title for title in SHAPES if title not in APART]),
    texts=st.lists(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=2).map(" ".join), min_size=9, max_size=9),
)
def test_the_findings_are_those_of_the_words_whatever_the_texts_are(name: str, title: str, texts: list[str]):
    written: list[tuple[str, str]] = []

    def write(_: str, kind: str = "content") -> str:
        written.append((texts[len(written)], kind))
        return written[-1][0]

    row = SHAPES[title].row(write)
    found = row_tokenizer(name)([(WHERE, row)])
    if isinstance(found.rows[0], ValueError):
        assert isinstance(done(name, title).rows[0], ValueError)
        return
    truth = replace(truth_of(name, title), texts=dict(zip(truth_of(name, title).texts, written, strict=True)))
    (messages,) = conversations(row.prompt, row.completions).wholes  # pyright: ignore[reportArgumentType]
    right = expected(truth, row_tokenizer(name).template.fit(messages, row.template).text)
    said = {cause.name: found.findings.count(cause) for cause in CHECKED if found.findings.count(cause)}
    assert said == right
