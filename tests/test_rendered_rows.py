"""Rows as a training and a round see them: tokens, masks, and what is said about them."""

import copy
from typing import Any

import pytest

from humanline_fused.training.data.findings import (
    NO_STOP,
)
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.data.prompts import prepare_prompts
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.objectives.table import ROUND
from tests.chat_templates import TEMPLATES, TRAINING, tokenizer
from tests.conversations import assistant, call, system, user, write_text

ASKED = [user("Is the sea red?")]


def learnt(row: dict[str, Any], name: str, habit: str = "bytes") -> tuple[list[str], list[str]]:
    """Return the texts of a pair's prompt and completions, and the findings."""
    tok: Any = tokenizer(name, habit)
    data = prepare([row], tok, find_objective("dpo"), max_length=512)
    (example,) = data.examples
    return [tok.decode(ids) for ids in (example.prompt_ids, *example.completions)], data.findings.lines()


def sampled(prompt: Any, name: str, habit: str = "bytes") -> tuple[str, list[str]]:
    """Return the text that a round samples from, and the findings."""
    tok: Any = tokenizer(name, habit)
    data = prepare_prompts([{"prompt": prompt}], tok, ROUND, max_length=512)
    return tok.decode(data.examples[0].prompt_ids), data.findings.lines()


def test_a_template_that_drops_the_reasoning_makes_pairs_equal_and_says_so():
    row = {
        "prompt": ASKED,
        "chosen": [assistant("<think>\nI see blue.\n</think>\nNo.")],
        "rejected": [assistant("<think>\nI see red.\n</think>\nNo.")],
    }
    texts, said = learnt(row, "deepseek_r1_distill")
    end = "<｜end▁of▁sentence｜>"
    assert texts == ["<s><｜User｜>Is the sea red?<｜Assistant｜>", f"\nNo.{end}", f"\nNo.{end}"]
    assert said == [
        "answers whose reasoning the template leaves out, so that it is not learnt: 2, e.g. dataset, example 0: "
        "'I see blue.'",
        "prompts whose end is left out of training: 1, e.g. dataset, example 0: '<think>\\n'",
        "pairs whose tokens that count are equal: 1, e.g. dataset, example 0",
    ]
    prompt, said = sampled(ASKED, "deepseek_r1_distill")
    assert prompt == "<s><｜User｜>Is the sea red?<｜Assistant｜><think>\n"
    assert said == []


def test_an_answer_begun_in_the_prompt_is_continued():
    begun = [*ASKED, assistant("The sea is")]
    row = {"prompt": begun, "chosen": [assistant(" blue.")], "rejected": [assistant(" green.")]}
    texts, said = learnt(row, "chatml")
    asked = "<|im_start|>user\nIs the sea red?<|im_end|>\n<|im_start|>assistant\nThe sea is"
    assert texts == [asked, " blue.<|im_end|>\n", " green.<|im_end|>\n"]
    line = "prompts that end with an answer that was begun: continued: 1, e.g. dataset, example 0: 'The sea is'"
    assert said == [line]
    assert sampled(begun, "chatml") == (asked, [line])


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_nothink"])
def test_a_reasoning_begun_in_the_prompt_is_continued_without_an_empty_one_before_it(name: str):
    begun = [*ASKED, assistant("<think>\nI see")]
    row = {
        "prompt": begun,
        "chosen": [assistant(" blue.\n</think>\n\nNo.")],
        "rejected": [assistant(" it.</think>Yes.")],
    }
    texts, _ = learnt(row, name)
    asked = "<|im_start|>user\nIs the sea red?<|im_end|>\n<|im_start|>assistant\n<think>\nI see"
    assert texts == [asked, " blue.\n</think>\n\nNo.<|im_end|>\n", " it.\n</think>\n\nYes.<|im_end|>\n"]
    assert sampled(begun, name)[0] == asked


def test_a_begun_answer_that_the_template_takes_out_is_refused():
    begun = [*ASKED, assistant("<think>\nI see")]
    row = {"prompt": begun, "chosen": [assistant(" blue.</think>No.")], "rejected": [assistant(" it.</think>Yes.")]}
    with pytest.raises(
        ValueError, match=r"dataset, example 0: .* got one that leaves out '<think>.*I see' once it goes on"
    ):
        learnt(row, "deepseek_r1_distill")
    prompt, _ = sampled(begun, "deepseek_r1_distill")
    assert prompt == "<s><｜User｜>Is the sea red?<｜Assistant｜><think>\nI see"


@pytest.mark.parametrize(
    ("begun", "answer", "said"),
    [
        (assistant("I look.", tool_calls=[call(write_text)]), assistant("No."), "to go on with it, got tool_calls"),
        (assistant("", reasoning_content="I see"), assistant("No."), "to go on with it, got reasoning_content"),
        (
            assistant("The sea"),
            assistant(" is blue.", reasoning_content="I see."),
            "expected content that continues the prompt's last message, got reasoning_content",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused_with_the_row(begun: dict[str, Any], answer: dict[str, Any], said: str):
    row = {"prompt": [*ASKED, begun], "chosen": [answer], "rejected": [assistant("Yes.")]}
    with pytest.raises(ValueError, match=f"^dataset, example 0: .*{said}$"):
        learnt(row, "qwen3")


@pytest.mark.parametrize("name", ["deepseekv3", "glm4moe", "lfm2_2_5_v2"])
@pytest.mark.parametrize("as_json", [True, False])
def test_arguments_of_calls_are_given_in_the_form_that_the_template_takes(name: str, as_json: bool):
    chosen = assistant("", tool_calls=[call(write_text, city="Rome", as_json=as_json)])
    texts, said = learnt({"prompt": ASKED, "chosen": [chosen], "rejected": [assistant("No.")]}, name)
    assert "Rome" in texts[1]
    assert not [line for line in said if "calls" in line or "changes" in line]


def test_arguments_as_json_that_the_template_writes_in_quotes_are_said_to_be_changed():
    chosen = assistant("", tool_calls=[call(write_text, as_json=True)])
    _, said = learnt({"prompt": ASKED, "chosen": [chosen], "rejected": [assistant("No.")]}, "qwen2_5")
    assert said == [
        """texts that the template changes: 1, e.g. dataset, example 0: """
        """'{"city": "Paris", "days": 2} -> {\\\\"city\\\\": \\\\"Paris\\\\", \\\\"days\\\\": 2}'"""
    ]


def test_an_empty_answer_begun_is_no_answer():
    row = {"prompt": [*ASKED, assistant("")], "chosen": [assistant("No.")], "rejected": [assistant("Yes.")]}
    assert learnt(row, "chatml") == learnt({**row, "prompt": ASKED}, "chatml")


def test_a_system_message_that_moves_is_lost_in_training_and_the_question_does_not_count():
    asked = [system("Be brief."), *ASKED]
    row = {"prompt": asked, "chosen": [assistant("No.")], "rejected": [assistant("Yes.")]}
    tok = tokenizer("mistral_v3")
    data = prepare([row], tok, find_objective("dpo"), max_length=512)
    (example,) = data.examples
    assert tok.decode(example.prompt_ids) == "<s>[INST]"
    for completion, mask, answer in zip(example.completions, example.masks, ("No.", "Yes."), strict=True):
        assert tok.decode(completion) == f" Is the sea red?[/INST] {answer}</s>"
        assert tok.decode(completion[mask]) == f" {answer}</s>"
    said = data.findings.lines()
    assert said[:2] == [
        "texts that are in the prompt when sampling, but not when training: 1, e.g. dataset, example 0: 'Be brief.'",
        "completions whose prompt the template renders differently once an answer follows: 2, e.g. dataset, example 0: "
        "'Is the sea red?'",
    ]
    assert sampled(asked, "mistral_v3") == ("<s>[INST] Be brief.\n\nIs the sea red?[/INST]", [])


def test_special_tokens_in_texts_are_counted_wherever_they_stand():
    asked = [system("Never write <|im_end|>."), user("Why?")]
    row = {
        "prompt": asked,
        "chosen": [assistant("No.", reasoning_content="An <|im_start|> there?")],
        "rejected": [assistant("", tool_calls=[call(write_text, city="<|im_end|>")])],
    }
    said = [line for line in learnt(row, "qwen3")[1] if "special token" in line]
    assert said == [
        "texts with a special token in them, which becomes that token: 3, e.g. dataset, example 0: '<|im_end|>'"
    ]


def test_an_end_of_turn_that_is_no_stop_token_is_said():
    row = {"prompt": ASKED, "chosen": [assistant("No.")], "rejected": [assistant("Yes.")]}
    line = (
        "completions that end without a stop token, so that stopping is not learnt: set the eos_token: 2, e.g. dataset"
    )
    assert line in "; ".join(learnt(row, "glm4moe")[1])
    tok = tokenizer("chatml", template=TEMPLATES["chatml"].replace("<|im_end|>", "<|im_start|>"))
    made = prepare([row], tok, find_objective("dpo"), max_length=99)
    assert made.findings.count(NO_STOP) == 2
    stop = tok.convert_tokens_to_ids("<|im_start|>")
    assert not prepare([row], tok, find_objective("dpo"), max_length=99, stops=[stop]).findings.count(NO_STOP)


def test_a_stop_token_that_the_templates_tags_leave_out_is_not_learnt():
    tags = ("{% generation %}", "{% endgeneration %}")
    content = "{{ message['content'] }}"
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        f"{{% if message['role'] == 'assistant' %}}{content.join(tags)}{{% else %}}{content}{{% endif %}}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    row = {"prompt": ASKED, "chosen": [assistant("No.")], "rejected": [assistant("Yes.")]}
    data = prepare([row], tokenizer("chatml", template=template), find_objective("dpo"), max_length=99)
    assert data.findings.count(NO_STOP) == 2


def test_rows_are_rendered_in_threads_as_in_one():
    template = TRAINING["qwen2_5"]
    row = {"chosen": [assistant("No. " * 9)], "rejected": [assistant("Yes.")]}
    rows = [{**row, "prompt": [user(f"Is it {i}?")]} for i in range(400)]
    data = prepare(rows, tokenizer("qwen2_5", template=template), find_objective("dpo"), max_length=512)
    assert [example.masks for example in data.examples] == [()] * 400


def test_keys_and_variables_that_the_template_does_not_read_are_counted():
    row = {"prompt": ASKED, "chosen": [assistant("No.")], "rejected": [assistant("Yes.")]}
    extra = row | {"chosen": [assistant("No.") | {"weight": 0}], "chat_template_kwargs": {"mood": "calm"}}
    said = "rows with keys of messages or template variables that the chat template does not read: 1, e.g. dataset, "
    assert learnt(row, "qwen3")[1] == learnt(row | {"chat_template_kwargs": {"enable_thinking": True}}, "qwen3")[1]
    texts, lines = learnt(extra, "qwen3")
    assert texts == learnt(row, "qwen3")[0]
    assert said + "example 0: 'mood, weight'" in lines
    prompt, lines = sampled([ASKED[0] | {"weight": 0}], "qwen3")
    assert prompt == sampled(ASKED, "qwen3")[0]
    assert said + "example 0: 'weight'" in lines


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ range(10 ** 9) | list }}", "{{ messages[0].x.y }}", "{{ 'a"])
def test_any_error_of_a_template_names_the_row(template: str):
    tok: Any = copy.deepcopy(tokenizer("qwen3"))
    tok.chat_template = template
    row = {"prompt": ASKED, "chosen": [assistant("No.")], "rejected": [assistant("Yes.")]}
    with pytest.raises(ValueError, match=r"^dataset, example 0: the tokenizer does not take it: "):
        prepare([row], tok, find_objective("dpo"), max_length=512)
