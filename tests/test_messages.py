"""Messages are made plain, or refused with row and reason, the same for every source and file type."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from humanline_fused.training.data.findings import (
    JSON_MESSAGES,
    PARTS_JOINED,
    PROMPT_REPEATED,
    PROMPT_TAKEN_ONCE,
    Findings,
)
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.data.rows.records import Row, read_row
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.objectives.table import ROUND
from tests.tiny_model import tiny_tokenizer

CALL = {"type": "function", "function": {"name": "weigh", "arguments": {"fruit": "plum"}}}


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


ASK, YES, NO = turn("user", "w1 w2"), turn("assistant", "w3"), turn("assistant", "w4 w5")
PAIR = {"prompt": [ASK], "chosen": [YES], "rejected": [NO]}


def row_of(record: Any, objective: str = "dpo", findings: Findings | None = None) -> Row:
    return read_row("line 1", record, find_objective(objective), findings=findings)


def reason(record: Any, objective: str = "dpo") -> str:
    with pytest.raises(ValueError, match=r"^line 1: ") as caught:
        row_of(record, objective)
    return str(caught.value).removeprefix("line 1: ")


# Content


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "w1 "}, {"type": "text", "text": "w2"}],
        ["w1 ", "w2"],
        [{"type": "text", "text": "w1 w2", "image": None}],
        ({"text": "w1 w2"},),
    ],
)
def test_text_parts_are_joined_and_counted(content: Any):
    findings = Findings()
    row = row_of(PAIR | {"prompt": [turn("user", content)]}, findings=findings)
    assert row == row_of(PAIR)
    assert findings.count(PARTS_JOINED) == 1


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "assistant", "text": "w3"}, "expected 'content' in the message of role 'assistant', got 'text'"),
        ({"role": "assistant", "value": "w3"}, "expected 'content' in the message of role 'assistant', got 'value'"),
        (
            {"role": "assistant", "message": "w3"},
            "expected 'content' in the message of role 'assistant', got 'message'",
        ),
        (
            {"role": "assistant"},
            "expected 'content' or tool calls in the message of role 'assistant', got the keys 'role'",
        ),
        (turn("assistant", None) | {"name": "x"}, "of role 'assistant', got the keys 'role', 'name'"),
        (turn("assistant", None) | {"tool_calls": []}, "got the keys 'role', 'tool_calls'"),
        (turn("assistant", 4), "expected the content of a message to be text, got 4"),
        (turn("assistant", True), "expected the content of a message to be text, got True"),
        (turn("assistant", {"text": "w3"}), "expected the content of a message to be text, got {'text': 'w3'}"),
        (
            turn("assistant", [{"type": "text", "text": "w3"}, {"type": "image", "image": "plum.png"}]),
            "expected the content of a message to be text, got {'type': 'image', 'image': 'plum.png'}",
        ),
        (
            turn("assistant", [{"type": "text", "text": "w3", "image": "a"}]),
            "got {'type': 'text', 'text': 'w3', 'image'",
        ),
        ({"content": "w3"}, "expected a message with 'role' and 'content', got the keys 'content'"),
        ({}, "expected a message with 'role' and 'content', got an empty one"),
        ({"from": "gpt", "value": "w3"}, "expected messages with 'role' and 'content', got 'from' and 'value' ('gpt')"),
        ({"role": 3, "content": "w3"}, "expected the role of a message to be text, got 3"),
        (turn("assistant", "w3") | {"tool_calls": "weigh"}, "expected tool_calls to be a list of objects, got 'weigh'"),
        *(
            (
                turn("assistant", "w3") | {"tool_calls": [{"function": function}]},
                f"expected the function of a call to be an object with a name, got {function!r}",
            )
            for function in (None, "weigh", {"arguments": {}})
        ),
        (
            turn("assistant", "") | {"function_call": {"name": "weigh"}},
            "expected the calls of a message in 'tool_calls', got 'function_call'",
        ),
    ],
)
def test_a_message_that_is_incomplete_or_no_text_is_refused_with_its_column(message: dict[str, Any], said: str):
    told = reason(PAIR | {"rejected": [message]})
    assert told.startswith("rejected: ")
    assert said in told


def test_a_share_gpt_message_is_refused_with_the_names_to_use():
    told = reason({"chosen": [{"from": "human", "value": "w1"}], "rejected": [{"from": "human", "value": "w1"}]})
    assert told == (
        "chosen: expected messages with 'role' and 'content', got 'from' and 'value' ('human'): rename them, with the "
        "roles system, user, assistant (human is user, gpt is assistant)"
    )


@pytest.mark.parametrize(
    "said", [{"tool_calls": [CALL]}, {"reasoning_content": "w9"}, {"thinking": "w9"}, {"reasoning": "w9"}]
)
def test_a_message_without_content_may_call_a_tool_or_reason(said: dict[str, Any]):
    for given in ({"role": "assistant"}, turn("assistant", None)):
        assert row_of(PAIR | {"chosen": [given | said]}).completions[0] == [{"role": "assistant"} | said]


def test_keys_that_are_none_are_dropped_and_an_empty_content_beside_calls_stays():
    given = turn("assistant", "") | {"tool_calls": [CALL], "name": None}
    assert row_of(PAIR | {"chosen": [given]}).completions[0] == [turn("assistant", "") | {"tool_calls": [CALL]}]


def test_messages_of_other_roles_are_counted():
    findings = Findings()
    prompt = [turn(role, "w1") for role in ("system", "human", "tool", "User", "user")]
    assert row_of(PAIR | {"prompt": prompt}, findings=findings).prompt == prompt
    (line,) = findings.lines()
    assert line.endswith("and tool: 2, e.g. line 1: 'human'")


# Messages as JSON text


def test_messages_as_json_text_are_the_same_in_every_kind_of_source(tmp_path: Path):
    texts = {name: json.dumps(messages) for name, messages in PAIR.items()}
    Dataset.from_list([texts]).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(json.dumps(texts))
    cells = ",".join('"' + text.replace('"', '""') + '"' for text in texts.values())
    (tmp_path / "a.csv").write_text(",".join(texts) + "\n" + cells)
    expected = prepare([PAIR], tiny_tokenizer(), find_objective("dpo"), max_length=64).examples
    for source in (
        [texts],
        Dataset.from_list([texts]),
        *(tmp_path / f"a.{kind}" for kind in ("parquet", "jsonl", "csv")),
    ):
        data = prepare(source, tiny_tokenizer(), find_objective("dpo"), max_length=64)
        (example,) = data.examples
        assert example.prompt_ids.tolist() == expected[0].prompt_ids.tolist()
        assert [c.tolist() for c in example.completions] == [c.tolist() for c in expected[0].completions]
        assert data.findings.count(JSON_MESSAGES) == 3


@pytest.mark.parametrize("first", [{"name": "x"}, {"id": 3, "meta": [{"a": "}"}]}])
def test_the_keys_of_messages_in_json_have_any_order(first: dict[str, Any]):
    answer = json.dumps([first | YES])
    assert row_of({"prompt": "w1", "chosen": json.dumps([ASK, YES]), "rejected": json.dumps([ASK, NO])}).completions
    assert row_of(PAIR | {"chosen": answer}).completions[0] == [first | YES]


def test_one_message_as_json_text_is_refused_as_one_that_is_no_text():
    for answer in (YES, json.dumps(YES), json.dumps({"id": 3} | YES)):
        assert "expected" in reason(PAIR | {"chosen": answer, "rejected": answer})
    told = reason({"prompt": "w1", "chosen": json.dumps(YES), "rejected": json.dumps(NO)})
    assert told == "chosen: expected a list of messages, got one message: " + repr(json.dumps(YES))


def test_messages_as_python_text_or_cut_off_are_refused():
    told = reason(PAIR | {"prompt": str([ASK])})
    assert told.startswith("prompt: expected JSON, got \"[{'role': 'user', 'content': 'w1 w2'}]\": ")
    assert reason(PAIR | {"prompt": json.dumps([ASK])[:-2]}).startswith("prompt: expected JSON, got ")


def test_half_a_character_in_messages_as_json_text_is_refused():
    told = reason(PAIR | {"prompt": json.dumps([turn("user", "a\ud83d")])})
    assert told == "half a surrogate pair at character 1 of prompt[0].content"


@pytest.mark.parametrize(
    "text",
    [
        '[{"value": 3}]',
        '[{"role": "admin", "rights": []}]',
        '[{"role": "user", "content": "a"}] is not valid: why?',
        '[{"name": "plum", "weight": 3}]',
        '{"role": "admin", "rights": []}',
        '{"role": "king", "content": "gold"}',
    ],
)
def test_an_answer_in_json_stays_text(text: str):
    for other in ("w2", text):
        row = row_of({"prompt": "w1", "chosen": text, "rejected": other})
        assert (row.prompt, row.completions) == ("w1", [text, other])


def test_text_beside_messages_is_refused():
    for record in (PAIR | {"chosen": "w3"}, {"prompt": "w1", "completion": [YES], "label": True}):
        objective = "kto" if "label" in record else "dpo"
        assert reason(record, objective).startswith("expected prompt and completions all to be text or all to be lists")


# Completions begin with the assistant's turn


def test_a_completion_that_begins_with_another_turn_is_refused():
    told = reason(PAIR | {"chosen": [ASK, YES]})
    assert told == (
        "chosen: expected a completion that begins with an assistant's turn, got the role 'user': the prompt is taken "
        "once if all completions of a row begin with the whole of it"
    )
    assert "got the role 'gpt'" in reason(PAIR | {"rejected": [turn("gpt", "w3")]})


def test_whole_conversations_beside_their_prompt_are_taken_from_its_end_on():
    findings = Findings()
    row = row_of(PAIR | {"chosen": [ASK, YES], "rejected": [ASK, NO]}, findings=findings)
    assert row == row_of(PAIR)
    assert findings.count(PROMPT_TAKEN_ONCE) == 2
    alone = row_of({"prompt": [ASK], "completion": [ASK, YES], "label": True}, "kto")
    assert (alone.prompt, alone.completions) == ([ASK], [[YES]])


def test_a_conversation_that_ends_with_its_prompt_is_refused():
    assert "got the role 'user'" in reason(PAIR | {"chosen": [ASK], "rejected": [ASK, NO]})


def test_texts_that_begin_with_their_prompt_are_counted_and_stay():
    findings = Findings()
    record = {"prompt": "Is it ripe?", "chosen": "Is it ripe? Yes.", "rejected": " Is it ripe? No."}
    assert row_of(record, findings=findings).completions == [record["chosen"], record["rejected"]]
    assert findings.count(PROMPT_REPEATED) == 2
    row_of({"prompt": "Go", "chosen": "Go on.", "rejected": "Stop."}, findings=findings)
    assert findings.count(PROMPT_REPEATED) == 2


def test_answers_that_begin_with_the_answer_begun_in_the_prompt_are_counted_and_stay():
    findings = Findings()
    begun = turn("assistant", "w3 w4")
    record = {"prompt": [ASK, begun], "chosen": [turn("assistant", "w3 w4 w5")], "rejected": [turn("assistant", "w6")]}
    assert row_of(record, findings=findings).completions == [record["chosen"], record["rejected"]]
    assert findings.count(PROMPT_REPEATED) == 1
    row_of(record | {"prompt": [ASK]}, findings=findings)
    row_of(record | {"prompt": [ASK, turn("assistant", "")]}, findings=findings)
    assert findings.count(PROMPT_REPEATED) == 1


def test_conversations_that_part_at_a_users_turn_are_refused():
    other = turn("user", "w7")
    told = reason({"chosen": [ASK, YES, other, YES], "rejected": [ASK, YES, ASK, NO]})
    assert told == (
        "chosen: expected a completion that begins with an assistant's turn, got the role 'user': chosen and rejected "
        "part at a turn that is not the assistant's"
    )
    row = row_of({"chosen": [ASK, YES, other, YES], "rejected": [ASK, NO, other, YES]})
    assert (row.prompt, row.completions) == ([ASK], [[YES, other, YES], [NO, other, YES]])


def test_the_prompt_of_a_round_is_made_plain_too():
    row = read_row("line 1", {"prompt": json.dumps([turn("user", ["w1 w2"])])}, ROUND)
    assert row.prompt == [ASK]


# Settings of the chat template


RESERVED = (
    "padding truncation max_length chat_template return_tensors return_dict tokenize add_generation_prompt "
    "continue_final_message conversation conversations messages tools bos_token eos_token"
)


@pytest.mark.parametrize("name", RESERVED.split())
def test_settings_of_apply_chat_template_itself_are_refused(name: str):
    told = reason(PAIR | {"chat_template_kwargs": {"mood": "calm", name: 1}})
    assert told == (
        f"chat_template_kwargs: expected variables of the chat template, got {name!r}, which belongs to "
        "apply_chat_template or the tokenizer"
    )


def test_variables_of_the_template_pass_without_those_that_are_none():
    given = {"mood": "calm", "documents": [{"title": "a"}], "padding": None}
    row = row_of(PAIR | {"chat_template_kwargs": given})
    assert row.template == {"mood": "calm", "documents": [{"title": "a"}]}
