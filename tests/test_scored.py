"""Scored completions become groups; groups become pairs and labels. Rewards and labels are numbers, or refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from humanline_fused.training.data.examples import Sample
from humanline_fused.training.data.findings import (
    ALL_DESIRABLE,
    ALL_UNDESIRABLE,
    ALONE,
    AT_MEAN,
    DROPPED,
    LABELLED,
    PAIRED,
    TIED,
    Findings,
)
from humanline_fused.training.data.prepare import PreparedData, prepare
from humanline_fused.training.data.rows.records import REWARDED, SCORED, Row, read_row
from humanline_fused.training.data.rows.scored import grouped
from humanline_fused.training.inspection import inspect_data, report
from humanline_fused.training.objectives import find_objective
from tests.tiny_model import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def scored(prompt: Any, completion: Any, reward: Any, name: str = "reward") -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, name: reward}


MIXED = [
    scored("w1", " w2", 1.0),
    scored("w5", " w6", 3),
    scored("w1", " w3", 0.0),
    scored("w9", " w2", 5.0),
    scored("w5", " w7", 3),
    scored("w1", " w4", 0.5),
]
"""Three completions of w1, two equal ones of w5, one of w9."""
GROUPED = [
    {"prompt": "w1", "completions": [" w2", " w3", " w4"], "rewards": [1.0, 0.0, 0.5]},
    {"prompt": "w5", "completions": [" w6", " w7"], "rewards": [3, 3]},
]


def prepared(rows: Any, objective: str) -> PreparedData:
    return prepare(rows, TOKENIZER, find_objective(objective), max_length=64)


def decoded(data: PreparedData) -> list[tuple[Any, ...]]:
    """Return prompt, completions, weight and reward of every example."""
    return [
        (TOKENIZER.decode(e.prompt_ids), *(TOKENIZER.decode(c) for c in e.completions), e.weight, e.reward)
        for e in data.examples
    ]


# Grouping


@pytest.mark.parametrize("objective", ["dpo", "kto", "grpo"])
def test_scored_rows_give_the_examples_of_their_groups(objective: str):
    assert decoded(prepared(MIXED, objective)) == decoded(prepared(GROUPED, objective))


def test_a_prompt_with_one_completion_is_left_out_and_counted():
    findings = prepared(MIXED, "grpo").findings
    assert findings.count(ALONE) == 1
    assert findings.found[ALONE.name].where == "dataset, example 3"
    with pytest.raises(
        ValueError, match=r"got none \(prompts with one scored completion, left out: .*: 1, e.g. dataset"
    ):
        prepared(MIXED[3:4], "grpo")


def test_groups_are_in_the_order_of_their_first_rows_and_have_their_place():
    rows = [(f"line {i}", read_row("", record, find_objective("grpo"))) for i, record in enumerate(MIXED)]
    found = list(grouped(rows, Findings()))
    assert [(where, row.type, row.prompt, row.values) for where, row in found if isinstance(row, Row)] == [
        ("line 0", REWARDED, "w1", [1.0, 0.0, 0.5]),
        ("line 1", REWARDED, "w5", [3.0, 3.0]),
    ]


def test_prompts_of_messages_are_one_group_if_their_tools_are_equal():
    ask, tools = [{"role": "user", "content": "w1"}], [{"name": "weigh"}]
    answers = [[{"role": "assistant", "content": word}] for word in ("w2", "w3", "w4", "w5")]
    rows = [scored(ask, answer, i) | ({"tools": tools} if i > 1 else {}) for i, answer in enumerate(answers)]
    checked = [("", read_row("", row, find_objective("grpo"))) for row in rows]
    found = [row for _, row in grouped(checked, Findings()) if isinstance(row, Row)]
    assert [(row.values, row.template) for row in found] == [([0.0, 1.0], {}), ([2.0, 3.0], {"tools": tools})]


def test_an_error_among_scored_rows_is_passed_on_in_its_place():
    error = ValueError("line 2: wrong")
    rows: list[tuple[str, Row | ValueError]] = [("line 1", Row(SCORED, "w1", ["w2"], [1.0])), ("line 2", error)]
    assert list(grouped(rows, Findings())) == [("line 2", error)]


def test_score_is_another_name_of_reward_and_a_label_comes_first():
    assert decoded(prepared([scored("w1", f" w{i}", i, "score") for i in (2, 3)], "grpo")) == decoded(
        prepared([scored("w1", f" w{i}", i) for i in (2, 3)], "grpo")
    )
    both = [scored("w1", f" w{i}", i) | {"score": -i, "label": i == 2} for i in (2, 3)]
    assert [e.weight for e in prepared(both, "kto").examples] == [1.0, 0.0]
    assert [e.reward for e in prepared(both, "grpo").examples] == [2.0, 3.0]


def test_scored_rows_of_a_table_have_their_rewards_as_text(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion,reward\nw1, w2,1\nw1, w3,-0.5\n")
    assert [e.reward for e in prepared(path, "grpo").examples] == [1.0, -0.5]


# Pairs and labels from rewards


def test_a_pair_is_the_first_best_against_the_first_worst():
    group = {"prompt": "w1", "completions": [" w2", " w3", " w4", " w5"], "rewards": [0, 2, 2, 0]}
    data = prepared([group, GROUPED[1]], "dpo")
    assert decoded(data) == [("w1", "w3 <eos>", "w2 <eos>", 0.0, 0.0)]
    assert (data.findings.count(PAIRED), data.findings.count(TIED)) == (1, 1)


def test_labels_are_desirable_above_the_mean_and_undesirable_below():
    data = prepared(GROUPED, "kto")
    assert decoded(data) == [("w1", "w2 <eos>", 1.0, 0.0), ("w1", "w3 <eos>", 0.0, 0.0)]
    assert [data.findings.count(cause) for cause in (LABELLED, AT_MEAN, TIED)] == [2, 1, 1]


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_rounds_and_datasets_have_the_same_rule(objective: str):
    form, (group, tie) = find_objective(objective).form, GROUPED
    prompt = prepared([group], "dpo").examples[0]
    for rewards in (group["rewards"], [0.1, 0.1, 0.7], tie["rewards"]):
        words = [[n] for n in range(len(rewards))]
        mean = sum(rewards) / len(rewards)
        samples = [
            Sample(0, torch.tensor(ids), "", reward, reward - mean if abs(reward - mean) > 1e-9 else 0.0)
            for ids, reward in zip(words, rewards, strict=True)
        ]
        from_round = [
            ([c.tolist() for c in example.completions], example.weight) for example in form.examples_of(prompt, samples)
        ]
        row = form.converted("", Row(REWARDED, "w1", [*map(str, words)], [*map(float, rewards)]), Findings())
        drafts = form.drafts(row, "group") if row else []
        texts = row.completions if row else []
        assert from_round == [([json.loads(str(texts[i])) for i in draft.sides], draft.weight) for draft in drafts]


def test_the_report_names_the_objective_without_a_conversion_first():
    for rows, name in ((MIXED, "scored data (prompt, completion, reward)"), (GROUPED, "rewarded data (prompt, c")):
        lines = report(inspect_data(rows)).splitlines()
        assert name in lines[0]
        assert lines[0].endswith("for objective='grpo' or objective='dpo' or objective='kto'")
    assert "groups            2, each of 2 to 3 completions, 5 in all" in report(inspect_data(MIXED))


def test_the_report_for_another_objective_has_its_examples():
    found = inspect_data(MIXED, objective="dpo", tokenizer=TOKENIZER)
    lines = report(found).splitlines()
    assert "pairs             1, 0 with chosen equal to rejected" in lines
    assert lines[-4:] == ["  chosen", "    w2 <eos>", "  rejected", "    w3 <eos>"]
    assert found.findings == prepared(MIXED, "dpo").findings
    assert "completions       1 desirable, 1 undesirable" in report(inspect_data(MIXED, objective="kto"))


# One class


@pytest.mark.parametrize("label", [True, False])
def test_labels_of_one_class_are_a_loss(label: bool):
    rows = [{"prompt": "w1", "completion": f" w{i}", "label": label} for i in range(3)]
    cause = ALL_DESIRABLE if label else ALL_UNDESIRABLE
    for findings in (prepared(rows, "kto").findings, inspect_data(rows, objective="kto").findings):
        assert findings.count(cause) == 3
    mixed = prepared([*rows, rows[0] | {"label": not label}], "kto").findings
    assert mixed.count(ALL_DESIRABLE) == mixed.count(ALL_UNDESIRABLE) == 0


def test_labels_whose_other_class_is_dropped_are_of_one_class():
    rows = [{"prompt": "w1 " * (1 if good else 90), "completion": " w2", "label": good} for good in (True, True, False)]
    inspected = inspect_data(rows, objective="kto", tokenizer=tiny_tokenizer(), max_length=64).findings
    for findings in (prepared(rows, "kto").findings, inspected):
        assert (findings.count(DROPPED), findings.count(ALL_DESIRABLE)) == (1, 2)


# Numbers


def values_of(record: dict[str, Any], objective: str) -> list[float]:
    return read_row("line 1", record, find_objective(objective)).values


@pytest.mark.parametrize("label", [True, 1, 1.0, "true", "True ", "1", "TRUE", np.bool_(True), torch.tensor(True)])
def test_a_label_may_be_written_in_many_ways(label: Any):
    assert values_of({"prompt": "w1", "completion": "w2", "label": label}, "kto") == [1.0]


@pytest.mark.parametrize(
    "label", ["yes", -1, 0.7, 2, [True], {"v": 1}, "", 10**400, float("nan"), torch.tensor([1, 0])]
)
def test_another_label_is_refused(label: Any):
    with pytest.raises(ValueError, match=r"^line 1: expected label to be true or false, got "):
        values_of({"prompt": "w1", "completion": "w2", "label": label}, "kto")


@pytest.mark.parametrize("reward", [1, 1.0, "1", " 1.0 ", np.float32(1), np.array(1.0), torch.tensor(1.0)])
def test_a_reward_may_be_a_number_of_any_library_or_the_text_of_one(reward: Any):
    assert values_of(scored("w1", "w2", reward), "grpo") == [1.0]
    group = {"prompt": "w1", "completions": ["w2", "w3"], "rewards": [reward, 0]}
    assert values_of(group, "grpo") == [1.0, 0.0]


@pytest.mark.parametrize(
    "reward",
    [
        True,
        np.bool_(True),
        "good",
        "",
        "nan",
        float("nan"),
        float("inf"),
        10**400,
        -(10**400),
        [1],
        {},
        "1e999",
        "1_0",
        1e39,
    ],
)
def test_another_reward_is_refused(reward: Any):
    with pytest.raises(ValueError, match=r"^line 1: expected the reward of a completion to be a finite number, got "):
        values_of(scored("w1", "w2", reward), "grpo")
    group = {"prompt": "w1", "completions": ["w2", "w3"], "rewards": [reward, 0]}
    with pytest.raises(ValueError, match=r"^line 1: expected 2 finite rewards, one a completion, got "):
        values_of(group, "grpo")


@pytest.mark.parametrize("array", [np.array, torch.tensor, tuple])
def test_rewards_and_completions_may_be_arrays(array: Any):
    group = {"prompt": "w1", "completions": np.array(["w2", "w3"]), "rewards": array([1.0, 0.0])}
    row = read_row("line 1", group, find_objective("grpo"))
    assert (row.completions, row.values) == (["w2", "w3"], [1.0, 0.0])
