"""Token ids are those of transformers, and the tokens that count are those of the text that the policy wrote."""

from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from humanline_fused.training.data.conversation import Conversations, begun_prompt, conversations
from humanline_fused.training.data.encoding import Span, common_length
from humanline_fused.training.data.findings import REASONING_LOST, TEXT_LOST
from humanline_fused.training.data.forms import LABELS
from humanline_fused.training.data.records import UNPAIRED, Row
from humanline_fused.training.data.rendering import REFUSALS
from humanline_fused.training.data.tokenization import RowTokenizer
from tests.chat_templates import HABITS, MARK, end_of, tokenizer
from tests.conversations import Words

NAMES = [
    "chatml",
    "alpaca",
    "deepseek_r1_distill",
    "gemma3",
    "glm4moe",
    "gptoss",
    "kimi_k2",
    "llama3_1",
    "llama_2",
    "mistral_small",
    "mistral_v3",
    "phi3",
    "qwen2_5",
    "qwen3",
    "qwen3_5_think",
    "zephyr",
]
WRITTEN = st.one_of(
    st.sampled_from(["No.", "Yes, of course.", "The sky is blue today.", "a", "assistant", "user", "I", "🌤", "été ﬁn"]),
    st.text(st.sampled_from("aB .\n\t'\"\\{}<|é晴🌈"), min_size=1, max_size=12).filter(
        lambda text: bool(text.strip()) and not MARK.search(text)
    ),
)

Parts = list[str]
"""The texts of a message, and special tokens between them: those that begin with ``<`` or ``[`` and are marks."""


@st.composite
def turns(draw: st.DrawFn) -> tuple[list[tuple[str, Parts]], list[tuple[str, Parts]]]:
    """Return a prompt and a completion, each a list of roles with the parts of their texts."""
    mark = st.sampled_from(["<think>", "</think>", "<END>", "<tool_call>"])
    message = st.one_of(
        st.lists(WRITTEN, min_size=1, max_size=1),
        st.tuples(WRITTEN, mark, WRITTEN).map(list),
        st.tuples(mark, WRITTEN).map(list),
    )
    answer = st.one_of(message, st.tuples(st.just("<think>\n"), WRITTEN, st.just("\n</think>\n\n"), WRITTEN).map(list))
    prompt = [("system", draw(message))] * draw(st.booleans())
    for _ in range(draw(st.integers(0, 1))):
        prompt += [("user", draw(message)), ("assistant", draw(answer))]
    prompt.append(("user", draw(message)))
    if draw(st.booleans()) and draw(st.booleans()):
        prompt.append(("assistant", [draw(WRITTEN)]))
    completion = [("assistant", draw(answer))]
    for _ in range(draw(st.integers(0, 2))):
        completion += [("user", draw(message)), ("assistant", draw(answer))]
    return prompt, completion


@cache
def rows(name: str, habit: str) -> RowTokenizer:
    return RowTokenizer(tokenizer(name, habit), LABELS)


def conversation(turns: list[tuple[str, Parts]], name: str, write: Any) -> list[dict[str, Any]]:
    def part(text: str) -> str:
        return end_of(name) if text == "<END>" else text if "think>" in text or text == "<tool_call>" else write(text)

    return [{"role": role, "content": "".join(map(part, parts))} for role, parts in turns]


def spans_of(text: str, pattern: str, texts: dict[str, str]) -> dict[str, Span] | None:
    """Return the place of each text in ``text``, which must be ``pattern`` with texts in place of their words."""
    places, position, left = {}, 0, pattern
    for word in sorted((word for word in texts if word in pattern), key=pattern.index):
        before, left = left.split(word, 1)
        start = position + len(before)
        position = start + len(texts[word])
        if text[start - len(before) : position] != before + texts[word] or word in left:
            return None
        places[word] = (start, position)
    return places if text[position:] == left else None


def texts_of(tokens: RowTokenizer, conversed: Conversations) -> tuple[str, str]:
    """Return the texts of the prompt and of the whole conversation."""
    template, (messages,) = tokens.template, conversed.wholes
    whole = template.fit(messages, {})
    if conversed.begun:
        return begun_prompt(template, conversed.prompt, {}, [whole]).text, whole.text
    return template.render(conversed.prompt, {}, ask=True), whole.text


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(turns=turns(), name=st.sampled_from(NAMES), habit=st.sampled_from(HABITS))
def test_tokens_that_count_are_those_of_what_the_policy_wrote(turns: Any, name: str, habit: str):
    prompt, completion = (conversation(part, name, lambda text: text) for part in turns)
    tokens = rows(name, habit)
    found = tokens([("line 1", Row(UNPAIRED, prompt, [completion], [1.0]))])
    (row,) = found.rows
    conversed = conversations(prompt, [completion])
    if isinstance(row, ValueError):
        event("refused")
        assert str(row).startswith("line 1: ")
        with pytest.raises(REFUSALS):
            texts_of(tokens, conversed)
        return
    (example,) = row
    tok, (whole,) = tokens.encoder.tokenizer, conversed.wholes

    # The ids are transformers' own.
    asked: Any = tok.apply_chat_template(
        conversed.prompt, add_generation_prompt=not conversed.begun, continue_final_message=conversed.begun
    )
    told: Any = tok.apply_chat_template(whole)
    start = common_length(asked["input_ids"], told["input_ids"])
    assert example.prompt.tolist() == told["input_ids"][:start]
    assert example.completions[0].tolist() == told["input_ids"][start:]

    # The texts are where a word stands that is written in their place.
    words = Words()
    pattern = conversations(*(lambda p, c: (p, [c]))(*(conversation(part, name, words) for part in turns)))
    text = tokens.template.render(whole, {})
    places = spans_of(
        text, tokens.template.render(pattern.wholes[0], {}), {w: t.strip() for w, (t, _) in words.texts.items()}
    )
    assume(places is not None)
    event("compared")
    assert places is not None
    message_of = {w: next(i for i, m in enumerate(pattern.wholes[0]) if w in m["content"]) for w in words.texts}
    policy = {word for word, i in message_of.items() if i >= conversed.first and whole[i]["role"] == "assistant"}
    lost = found.findings.count(TEXT_LOST) + found.findings.count(REASONING_LOST)
    assert bool(lost) == any(word not in places for word, i in message_of.items() if i >= conversed.first)

    offsets = tok(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][start:]
    kept = example.masks[0].tolist() if example.masks[0] is not None else [True] * len(offsets)
    begins = common_length(*texts_of(tokens, conversed))
    for (left, right), counts in zip(offsets, kept, strict=True):
        own = any(left < b and right > a for w, (a, b) in places.items() if w in policy)
        others = any(a <= left and right <= b and left < right for w, (a, b) in places.items() if w not in policy)
        assert counts or not own, (text[left:right], text)
        assert not counts or not others or own, (text[left:right], text)
    covered = {i for left, right in offsets for i in range(left, right)}
    for word in policy & places.keys():
        a, b = places[word]
        missing = [i for i in range(max(a, begins), b) if i not in covered and not text[i].isspace()]
        assert not missing, (word, text)
