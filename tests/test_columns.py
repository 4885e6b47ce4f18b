"""The columns setting, columns that look like the prompt, and system columns."""

from pathlib import Path
from typing import Any

import pytest

from humanline_fused.training.data.findings import (
    COLUMN_IGNORED,
    NO_PROMPT,
    PROMPT_PART_IGNORED,
    SYSTEM_ADDED,
    Findings,
)
from humanline_fused.training.data.rows.columns import apply_columns, read_columns
from humanline_fused.training.data.rows.records import Row, read_row
from humanline_fused.training.inspection import inspect_data
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.objectives.table import ROUND
from tests.tiny_model import tiny_config

ANSWERS = {"chosen": "Plums.", "rejected": "They like figs."}
SHARING = {"chosen": "The plum is ripe.", "rejected": "The fig is ripe."}
ASK, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "w1 w2"), ("assistant", "w3"), ("assistant", "w4"))
)
SYSTEM = {"role": "system", "content": "w9 w8"}
CHAT = {"prompt": [ASK], "chosen": [YES], "rejected": [NO]}


def row_of(record: Any, objective: str = "dpo", columns: Any = None, findings: Findings | None = None) -> Row:
    mapped = apply_columns("line 1", record, read_columns(columns))
    return read_row("line 1", mapped, find_objective(objective), findings=findings)


def reason(record: Any, objective: str = "dpo", columns: Any = None) -> str:
    with pytest.raises(ValueError, match=r"^line 1: ") as caught:
        row_of(record, objective, columns)
    return str(caught.value).removeprefix("line 1: ")


# The setting


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": "ask", "system": None},
        '{"prompt": "ask", "system": null}',
        "prompt=ask,system=null",
        " prompt = ask , system = null ",
    ],
)
def test_the_setting_is_a_mapping_json_or_pairs(given: Any):
    assert read_columns(given) == {"prompt": "ask", "system": None}


def test_an_empty_setting_is_none():
    assert [read_columns(given) for given in (None, {}, "", "{}")] == [None] * 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"promt": "ask"}, r"columns: expected targets among prompt, chosen, .*, got 'promt'; did you mean prompt\?"),
        ({"prompt": 3}, "columns: expected prompt to be a column, a list of columns or null, got 3"),
        ({"prompt": []}, r"columns: expected prompt to be a column, a list of columns or null, got \[\]"),
        ({"prompt": ["ask", None]}, r"a list of columns or null, got \['ask', None\]"),
        ("prompt", "columns: expected JSON or pairs such as prompt=question,chosen=good, got 'prompt'"),
        ("prompt=", "columns: expected JSON or pairs such as prompt=question,chosen=good, got 'prompt='"),
        ('{"prompt": ', "columns: expected a mapping in JSON, got "),
        (
            '{"prompt": "ask", "prompt": "say"}',
            "columns: expected a mapping in JSON, got .*the key 'prompt' occurs twice",
        ),
        ("prompt=ask,prompt=say", "columns: expected each target once, got 'prompt=ask,prompt=say'"),
        (["prompt"], r"columns: expected a mapping of columns to the dataset's columns, got \['prompt'\]"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(tmp_path: Path, given: Any, said: str):
    with pytest.raises(ValueError, match=said):
        tiny_config(tmp_path, columns=given)


def test_a_column_is_renamed_and_a_list_is_joined_without_its_empty_texts():
    record = {"told": "Name one", "more": "of them", "good": " a", "bad": " b", "id": 7}
    mapping = {"prompt": ["told", "more"], "chosen": "good", "rejected": "bad"}
    assert apply_columns("", record, mapping) == {
        "prompt": "Name one\nof them",
        "chosen": " a",
        "rejected": " b",
        "id": 7,
    }
    for empty in ("", None):
        assert apply_columns("", record | {"more": empty}, mapping)["prompt"] == "Name one"
    assert apply_columns("", {"told": "", "more": None}, {"prompt": ["told", "more"]})["prompt"] is None


def test_columns_may_be_swapped_or_joined_with_themselves():
    record = {"system": "Be brief.", "prompt": "Which?", "chosen": "b", "rejected": "a"}
    mapping = {"prompt": ["system", "prompt"], "chosen": "rejected", "rejected": "chosen"}
    row = row_of(record, columns=mapping)
    assert (row.prompt, row.completions) == ("Be brief.\nWhich?", ["a", "b"])


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            ANSWERS | {"aks": "Which?"},
            "columns: expected a column 'ask' for prompt, this has 'chosen', 'rejected', 'aks'",
        ),
        (
            ANSWERS | {"ask": "Which?", "prompt": "What?"},
            "columns: expected prompt to come from 'ask' alone, but there is a column 'prompt' too",
        ),
    ],
)
def test_a_source_that_is_missing_and_a_target_that_is_there_are_refused(record: Any, said: str):
    assert reason(record, columns={"prompt": "ask"}) == said


def test_only_texts_are_joined():
    told = reason(ANSWERS | {"a": "Which?", "b": ["What?"]}, columns={"prompt": ["a", "b"]})
    assert told == "columns: expected texts to join for prompt, got list in 'b'"


def test_a_target_column_that_is_empty_may_be_there_too():
    assert row_of(ANSWERS | {"ask": "Which?", "prompt": None}, columns={"prompt": "ask"}).prompt == "Which?"


def test_a_text_that_the_setting_makes_the_prompt_of_messages_is_a_users_turn():
    answers = {"chosen": [YES], "rejected": [NO]}
    assert row_of({"ask": "w1 w2"} | answers, columns="prompt=ask") == row_of(CHAT)
    whole = {"chosen": [ASK, YES], "rejected": [ASK, NO]}
    assert row_of({"ask": "w1 w2"} | whole, columns="prompt=ask") == row_of(CHAT)
    for record, objective in (({"prompt": "w1 w2"} | answers, "dpo"), ({"completion": [YES], "label": True}, "kto")):
        given = {"prompt": "w1 w2"} | record
        assert reason(given, objective).endswith(": columns: {prompt: prompt} makes the text a user's message")
        assert row_of(given, objective, {"prompt": "prompt"}).prompt == [ASK]


# A prompt in a column of another name


@pytest.mark.parametrize(
    ("columns", "remedy", "prompt"),
    [
        ({"question": "Which fruit do wasps like?"}, "question", "Which fruit do wasps like?"),
        ({"query": "Why?"}, "query", "Why?"),
        ({"problem": "3 + 4"}, "problem", "3 + 4"),
        ({"user": "Which?"}, "user", "Which?"),
        ({"trajectory": "He went in, and"}, "trajectory", "He went in, and"),
        ({"initial_reason_steps": "Step 1: count."}, "initial_reason_steps", "Step 1: count."),
        ({"input": "of wasps", "instruction": "Name a fruit"}, "[instruction, input]", "Name a fruit\nof wasps"),
        ({"input": "", "instruction": "Name a fruit"}, "instruction", "Name a fruit"),
        ({"question": "Which?", "system": "Be brief."}, "[system, question]", "Be brief.\nWhich?"),
        ({"question": "Which?", "history": [["Hello", "Hi"]]}, "question", "Which?"),
        ({"source": "notes of May", "topic_line": "fruit that wasps like"}, None, ""),
        ({"ask_here": "fruit that wasps like"}, "ask_here", "fruit that wasps like"),
    ],
)
def test_pairs_whose_prompt_stands_in_another_column_are_refused_with_the_setting(
    columns: dict[str, str], remedy: str | None, prompt: str
):
    for pair, share in ((ANSWERS, "no beginning"), (SHARING, "only 'The'")):
        if remedy is None:
            row_of(columns | pair)
            continue
        told = reason(columns | pair)
        assert f"they share {share}, and " in told
        assert told.endswith(
            f"would be ignored: columns: {{prompt: {remedy}}}, or columns: {{prompt: null}} to ignore it"
        )
        names = remedy.strip("[]").split(", ")
        row = row_of(columns | pair, columns={"prompt": names if len(names) > 1 else names[0]})
        assert (row.prompt, row.completions) == (prompt, [*pair.values()])


def test_a_pair_is_taken_without_the_column_if_the_setting_says_so():
    findings = Findings()
    record = ANSWERS | {"question": "Which fruit do wasps like?"}
    row = row_of(record, columns={"prompt": None}, findings=findings)
    assert (row.prompt, row.completions) == ("", [*ANSWERS.values()])
    assert findings.count(NO_PROMPT) == 0


@pytest.mark.parametrize(
    "others",
    [
        {"source": "my own notes", "id": "row 17 of 90", "url": "https://example.org", "model": "a small one"},
        {"chosen_model": "model number one", "score_chosen": 3.5, "rating_reason": "it is much shorter"},
        {"question": "Which fruit do wasps like?"},
        {"task": "answer in brief"},
    ],
)
def test_pairs_that_begin_with_their_prompt_raise_no_doubt(others: dict[str, Any]):
    asked = "Ann asks in the garden: Which fruit do wasps like? Ben answers:"
    findings = Findings()
    row = row_of({"chosen": f"{asked} Plums.", "rejected": f"{asked} Figs."} | others, findings=findings)
    assert (row.prompt, row.completions) == (asked, [" Plums.", " Figs."])
    assert findings.count(NO_PROMPT) == 0


def test_pairs_with_nothing_beside_them_and_no_beginning_are_counted():
    findings = Findings()
    assert row_of(ANSWERS | {"source": "my own notes"}, findings=findings).prompt == ""
    assert findings.count(NO_PROMPT) == 1


def test_a_question_that_the_common_beginning_lacks_is_missed_even_if_that_is_long():
    begin = "The answer to your question is of course"
    told = reason({"question": "Which fruit?", "chosen": f"{begin} plum", "rejected": f"{begin} fig"})
    assert told.endswith("columns: {prompt: question}, or columns: {prompt: null} to ignore it")


def test_answers_as_messages_are_refused_like_texts():
    told = reason({"question": "w1 w2", "system": "w9", "chosen": [YES], "rejected": [NO]})
    assert "they share no beginning, and 'question' would be ignored: columns: {prompt: question}" in told
    told = reason({"question": "w1 w2", "system": "w9", "completion": [YES], "label": True}, "kto")
    assert told.endswith("columns: {prompt: question} makes 'question' the prompt")
    earlier = {"history": [ASK], "chosen": [YES], "rejected": [NO]}
    assert "columns: {prompt: history}" in reason(earlier)
    assert row_of(earlier, columns={"prompt": "history"}) == row_of(CHAT)


def test_a_prompt_of_text_that_the_messages_beside_it_lack_is_refused():
    pair = {"chosen": [ASK, YES], "rejected": [ASK, NO]}
    assert row_of(pair | {"prompt": "w1  w2"}).prompt == [ASK]
    told = reason(pair | {"prompt": "w7"})
    assert told.endswith("got the prompt 'w7': columns: {prompt: null} ignores it")
    assert row_of(pair | {"prompt": "w7"}, columns={"prompt": None}).prompt == [ASK]
    answers = {"chosen": [YES], "rejected": [NO], "prompt": "w1 w2", "question": "w1 w2 w7"}
    assert reason(answers).endswith("columns: {prompt: prompt} makes the text a user's message")


def test_an_empty_prompt_beside_a_question_is_refused():
    told = reason({"prompt": "", "question": "Which fruit?"} | ANSWERS)
    assert told == "expected a prompt that is not empty, and 'question' would be ignored: columns: {prompt: question}"
    assert row_of({"prompt": "", "question": "Which?"} | ANSWERS, columns="prompt=question").prompt == "Which?"
    assert row_of({"prompt": ""} | ANSWERS).prompt == ""


@pytest.mark.parametrize(
    ("objective", "record", "lacks"),
    [
        ("kto", {"completion": " a", "label": True}, "'prompt'; kto needs prompt, completion, label"),
        ("grpo", {"completions": [" a", " b"], "rewards": [1, 0]}, "'prompt'; grpo needs prompt, completions, rewards"),
        ("grpo", {"completion": " a", "reward": 1}, "'prompt'; grpo needs prompt, completion, reward"),
    ],
)
def test_a_row_without_a_prompt_names_the_column_that_looks_like_it(objective: str, record: dict[str, Any], lacks: str):
    given = {"instruction": "Name one", "input": "of them"} | record
    told = reason(given, objective)
    assert told.startswith(f"lacks {lacks}, this has 'instruction', 'input', ")
    assert told.endswith(": columns: {prompt: [instruction, input]} makes 'instruction' and 'input' the prompt")
    row = row_of(given, objective, {"prompt": ["instruction", "input"]})
    assert row.prompt == "Name one\nof them"
    (wrong,) = inspect_data([given]).wrong
    assert wrong.endswith("columns: {prompt: [instruction, input]} makes 'instruction' and 'input' the prompt")


# Ignored columns


def test_ignored_columns_are_counted_and_parts_of_the_prompt_are_a_note():
    findings = Findings()
    step = {
        "prompt": "How many?",
        "chosen": " 4",
        "rejected": " 5",
        "id": 3,
        "initial_reason_steps": "Count the plums.",
    }
    row_of(step, findings=findings)
    row_of(step | {"initial_reason_steps": None, "context": "How many?", "id": None}, findings=findings)
    assert (findings.count(COLUMN_IGNORED), findings.count(PROMPT_PART_IGNORED)) == (2, 1)
    (line,) = [line for line in findings.lines() if line.startswith("rows with a column that looks like")]
    assert line.endswith(": 1, e.g. line 1: 'initial_reason_steps'")
    silent = Findings()
    row_of(step, columns={"initial_reason_steps": None}, findings=silent)
    assert silent.count(PROMPT_PART_IGNORED) == 0
    row_of(step | {"initial_reason_steps": None, "Context": "Two plums and two more."}, findings=silent)
    assert silent.count(PROMPT_PART_IGNORED) == 1


# System columns


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_system_column_becomes_the_first_message(name: str):
    findings = Findings()
    assert row_of(CHAT | {name: "w9 w8"}, findings=findings) == row_of(CHAT | {"prompt": [SYSTEM, ASK]})
    implicit = {"chosen": [ASK, YES], "rejected": [ASK, NO], name: "w9 w8"}
    assert row_of(implicit, findings=findings).prompt == [SYSTEM, ASK]
    whole = CHAT | {"chosen": [SYSTEM, ASK, YES], "rejected": [SYSTEM, ASK, NO], name: "w9 w8"}
    assert row_of(whole, findings=findings) == row_of(CHAT | {"prompt": [SYSTEM, ASK]})
    assert findings.count(SYSTEM_ADDED) == 3
    assert read_row("", {"prompt": [ASK], name: "w9 w8"}, ROUND).prompt == [SYSTEM, ASK]


@pytest.mark.parametrize("empty", [None, "", " "])
def test_an_empty_system_column_is_nothing(empty: Any):
    assert row_of(CHAT | {"system": empty}) == row_of(CHAT)
    assert row_of(ANSWERS | {"prompt": "Which?", "system": empty}).prompt == "Which?"


def test_a_system_column_equal_to_the_prompts_own_is_fine_and_another_is_refused():
    own = CHAT | {"prompt": [SYSTEM, ASK]}
    assert row_of(own | {"system": "w9 w8"}) == row_of(own)
    told = reason(own | {"system": "w7"})
    assert told == (
        "system: expected the prompt's own system message 'w9 w8', got 'w7': columns: {system: null} leaves it out"
    )
    assert row_of(own | {"system": "w7"}, columns={"system": None}) == row_of(own)
    assert "different ones in 'system' and 'system_prompt'" in reason(CHAT | {"system": "w7", "system_prompt": "w8"})
    assert reason(CHAT | {"system": 3}) == "system: expected the text of a system message, got 3"


def test_a_system_column_beside_a_prompt_of_text_is_refused():
    record = ANSWERS | {"prompt": "Which?", "system_prompt": "Be brief."}
    assert reason(record) == (
        "system_prompt: expected a prompt of messages, which can begin with a system message, got text: columns: "
        "{prompt: [system_prompt, prompt]} puts it before the prompt, columns: {system_prompt: null} leaves it out"
    )
    assert row_of(record, columns={"prompt": ["system_prompt", "prompt"]}).prompt == "Be brief.\nWhich?"
    assert row_of(record, columns={"system_prompt": None}).prompt == "Which?"
    assert row_of(record | {"prompt": "Be brief.\n\nWhich?"}).prompt == "Be brief.\n\nWhich?"
