"""Token ids are those of transformers, and the tokens that count are those of the text that the policy wrote."""

import copy
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from humanline_fused.training.data.findings import REASONING_LOST, TEXT_LOST, Severity
from humanline_fused.training.data.forms import LABELS
from humanline_fused.training.data.prefix import common_length
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.data.prompts import prepare_prompts
from humanline_fused.training.data.rows.records import UNPAIRED, Row
from humanline_fused.training.data.tokenizing.conversation import Conversations, begun_prompt, conversations
from humanline_fused.training.data.tokenizing.encoding import Span
from humanline_fused.training.data.tokenizing.rendering import REFUSALS
from humanline_fused.training.data.tokenizing.tokenization import RowTokenizer
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.objectives.table import ROUND
from tests.chat_templates import HABITS, MARK, end_of, tokenizer
from tests.conversations import Words
from tests.tiny_model import tiny_tokenizer

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


# Special tokens of texts without a template

TEXTS = {"prompt": "Is it green?", "chosen": " No.", "rejected": " Yes."}


def learnt(row: dict[str, str], habit: str) -> tuple[list[str], list[str]]:
    """Return the tokens of a pair as text, and the findings."""
    tok: Any = tokenizer("alpaca", habit)
    data = prepare([row], tok, find_objective("dpo"), max_length=512)
    (example,) = data.examples
    return [tok.decode(ids) for ids in (example.prompt_ids, *example.completions)], data.findings.lines()


def sampled(prompt: str, habit: str) -> str:
    tok: Any = tokenizer("alpaca", habit)
    return tok.decode(prepare_prompts([{"prompt": prompt}], tok, ROUND, max_length=512).examples[0].prompt_ids)


@pytest.mark.parametrize("text", ["Is it green?", "<s>Is it green?"])
def test_a_tokenizer_that_begins_texts_itself_does_it_once(text: str):
    assert learnt(TEXTS | {"prompt": text}, "bos") == (["<s>Is it green?", " No.</s>", " Yes.</s>"], [])
    assert sampled(text, "bos") == "<s>Is it green?"


@pytest.mark.parametrize("end", ["", "</s>"])
def test_a_tokenizer_that_ends_texts_itself_ends_answers_once_and_prompts_never(end: str):
    texts, said = learnt(TEXTS | {"chosen": f" No.{end}"}, "eos")
    assert texts == ["Is it green?", " No.</s>", " Yes.</s>"]
    assert said == [
        "texts that the tokenizer ends itself: removed behind prompts, not doubled behind completions: 3, "
        "e.g. dataset, example 0: '</s>'"
    ]
    assert sampled("Is it green?", "eos") == "Is it green?"


@pytest.mark.parametrize("habit", ["bos", "eos"])
def test_messages_have_the_special_tokens_of_their_template_alone(habit: str):
    tok = tokenizer("zephyr", habit)
    asked = [{"role": "user", "content": "Is it green?"}]
    row = {"prompt": asked, **{side: [{"role": "assistant", "content": "No."}] for side in ("chosen", "rejected")}}
    data = prepare([row], tok, find_objective("dpo"), max_length=512)
    (example,) = data.examples
    assert tok.decode(example.prompt_ids) == "<|user|>\nIs it green?</s><|assistant|>"
    assert tok.decode(example.completions[0]) == "\nNo.</s>"
    prompts = prepare_prompts([{"prompt": asked}], tok, ROUND, max_length=512)
    assert prompts.examples[0].prompt_ids.tolist() == example.prompt_ids.tolist()


def test_special_tokens_inside_of_texts_are_counted_and_those_at_their_ends_are_not():
    assert learnt(TEXTS | {"chosen": " No.</s>"}, "bytes")[1] == []
    said = learnt({"prompt": "Is </s> green?", "chosen": " No.</s>", "rejected": " A </s> is.</s>"}, "bytes")[1]
    assert said == ["texts with a special token in them, which becomes that token: 2, e.g. dataset, example 0: '</s>'"]


def test_without_an_end_of_sequence_answers_never_end_and_it_is_said():
    tok: Any = copy.deepcopy(tokenizer("alpaca"))
    tok.eos_token = None
    message = {"prompt": [{"role": "user", "content": "Is it?"}]}
    message |= {side: [{"role": "assistant", "content": "No."}] for side in ("chosen", "rejected")}
    tok.chat_template = tok.chat_template.replace("eos_token", "''")
    for row in (TEXTS, message):
        (said,) = prepare([row], tok, find_objective("dpo"), max_length=512).findings.lines(Severity.NOTE)
        assert said == (
            "completions that never end, as the tokenizer has no end-of-sequence token: set its eos_token: 2, e.g. "
            "dataset, example 0"
        )


def test_text_that_the_tokenizer_does_not_know_is_counted_with_its_first_part():
    tok, dpo = tiny_tokenizer(), find_objective("dpo")
    row = {"prompt": "w1 sea", "chosen": " w2 sky", "rejected": " w3"}
    said = "texts with a part that the tokenizer does not know, so that it is not learnt: {}, e.g. dataset, example 0: "
    assert prepare([row], tok, dpo, max_length=9).findings.lines() == [said.format(2) + "'sea'"]
    assert prepare([row | {"prompt": "w1"}], tok, dpo, max_length=9).findings.lines() == [said.format(1) + "'sky'"]
    assert prepare_prompts([row], tok, ROUND, max_length=9).findings.lines() == [said.format(1) + "'sea'"]
    tok.unk_token = tok.eos_token  # as GPT-2 has it: not told apart from the end
    assert prepare([row], tok, dpo, max_length=9).findings.lines() == []


# Texts are cut at special tokens


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.one_of(WRITTEN, st.sampled_from(["<|im_start|>", "<|im_end|>", "<think>", " ", "\n", "<|im"]))),
    rest=st.tuples(WRITTEN, WRITTEN),
    habit=st.sampled_from(HABITS),
)
def test_a_cut_at_a_shared_special_token_changes_no_id(parts: list[str], rest: tuple[str, str], habit: str):
    encoder = rows("qwen3", habit).encoder
    common = "".join(parts)
    texts = [common, *(common + text for text in rest)]
    cut = encoder.shared_start(texts)
    assert len({text[:cut] for text in texts}) == 1
    (head,) = encoder.ids([texts[0][:cut]])
    for text in texts:
        assert head + encoder.ids([text[cut:]])[0] == encoder.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_texts_with_special_tokens_are_cut_at_the_last_that_all_have():
    encoder = rows("qwen3", "bytes").encoder
    prompt = "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"
    assert encoder.shared_start([prompt, prompt + "No.<|im_end|>"]) == prompt.rindex("<|im_start|>")
    assert encoder.shared_start(["Is it?", "Is it? No."]) == 0
