"""``python -m benchmarks train --lengths``: layouts and peers on realistic lengths, at toy size."""

import json
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.results import read, write
from benchmarks.training import layouts_table
from benchmarks.training.answers import WRONG, checked
from benchmarks.training.lengths import NAMED, SHORT, Group, lengths_of
from benchmarks.training.runs import Run
from benchmarks.training.setting import DOCUMENTED, Setting, Work, tokens_of
from benchmarks.training.texts import completions_of
from benchmarks.training.train import Plan
from benchmarks.training.variants import COPY, IN_TRL, LAYOUTS, PADDED, SHARED, TRL, VARIANTS, Variant, available
from benchmarks.training.worker import train

CPU = torch.device("cpu")
TIMED = 1
FEW = [(3, [5, 9]), (8, [2, 4]), (2, [12, 3]), (6, [7, 7])]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Lengths of a file, short enough for whole trainers in seconds."""
    path = tmp_path_factory.mktemp("lengths") / "few.jsonl"
    rows = [{"prompt": prompt, "completions": completions} for prompt, completions in 24 * FEW]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def variant_of(key: str):
    return next(variant for variant in VARIANTS if variant.key == key)


@cache
def trained(key: str, objective: str, file: str) -> Run:
    """Return a run that the tests of this file share."""
    return train(variant_of(key), Work("toy", objective, file).setting, CPU, TIMED)


def test_a_log_normal_has_its_median_and_its_bounds():
    groups = NAMED["ultrafeedback"].draw(4000, 2)
    prompts = [group.prompt for group in groups]
    completions = [tokens for group in groups for tokens in group.completions]
    # a median of n draws is off by about 1.25 sigma / sqrt(n), of its logarithm; four times that is 4 %
    assert statistics.median(prompts) == pytest.approx(150, rel=0.07)
    assert statistics.median(completions) == pytest.approx(250, rel=0.05)
    assert (min(prompts), max(prompts), max(completions)) == (10, 600, 800)


def test_the_same_lengths_are_drawn_every_time_and_equal_ones_have_one_token_prompts():
    assert NAMED["math8"].draw(5, 8) == NAMED["math8"].draw(5, 8)
    assert NAMED["math8"].draw(5, 8)[:3] == NAMED["math8"].draw(3, 8)
    assert set(NAMED["equal"].draw(5, 2)) == {Group(1, (250, 250))}


def test_the_longest_sequence_is_named_for_every_distribution():
    for lengths in NAMED.values():
        groups = lengths.draw(200, lengths.group)
        assert max(group.prompt + max(group.completions) for group in groups) <= lengths.longest


@pytest.mark.parametrize(
    ("row", "group"),
    [
        ({"prompt": 3, "completions": [4, 5]}, Group(3, (5, 6))),
        ({"prompt": "a b", "chosen": "c d e", "rejected": "f"}, Group(2, (4, 2))),
        ({"prompt": "a b", "completion": 7}, Group(2, (8,))),
    ],
)
def test_a_file_gives_numbers_of_tokens_or_texts_whose_words_are_counted(tmp_path: Path, row, group):
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps(row))
    lengths = lengths_of(str(path))
    assert lengths.draw(1, len(group.completions)) == [group]
    assert (lengths.name, lengths.longest) == ("some", group.prompt + max(group.completions))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": 7}, "expected a mapping with a prompt"),
        ({"prompt": 7}, "expected completions, chosen and rejected or a completion"),
        ({"prompt": "", "completion": 7}, "expected a text with a word"),
        ({"prompt": 0, "completion": 7}, "number of tokens >= 1, got 0"),
    ],
)
def test_a_line_without_lengths_is_refused_with_its_number(tmp_path: Path, row, message):
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message) as refused:
        lengths_of(str(path))
    assert "some.jsonl:1" in str(refused.value)


def test_too_few_prompts_and_unknown_names_are_refused(file):
    with pytest.raises(ValueError, match="expected at least 97 prompts of 2 completions or more, got 96"):
        lengths_of(file).draw(97, 2)
    with pytest.raises(ValueError, match="expected ultrafeedback, math8, math16, equal or a JSONL file, got 'none'"):
        lengths_of("none")


@pytest.mark.parametrize(
    ("work", "examples", "accumulation"),
    [
        (Work("toy", "dpo", "ultrafeedback"), 4, 4),
        (Work("toy", "kto", "ultrafeedback"), 8, 4),
        (Work("toy", "grpo", "math8"), 8, 4),
        (Work("toy", "grpo", "math16"), 16, 2),
    ],
)
def test_a_step_has_thirty_two_completions_in_whole_groups(work: Work, examples: int, accumulation: int):
    setting = work.setting
    assert (setting.examples, setting.accumulation) == (examples, accumulation)
    step = setting.steps_of(setting.records(3))[1]
    sequences = sum(len(completions_of(record)) for record in step)
    assert sequences == 32


@pytest.mark.parametrize("work", DOCUMENTED, ids=lambda work: f"{work.objective} {work.lengths}")
def test_the_first_step_is_short_and_the_last_has_the_lengths_of_the_first_timed(work: Work):
    setting = work._replace(model="toy").setting
    first, timed, last = setting.steps_of(setting.records(3))
    sequences = [(record["prompt"], completion) for record in first for completion in completions_of(record)]
    assert tokens_of(first) == 2 * SHORT * len(sequences)
    assert [tokens_of([record]) for record in timed] == [tokens_of([record]) for record in last]
    assert timed != last


def test_every_other_completion_of_a_micro_batch_is_desirable():
    setting = Work("toy", "kto", "ultrafeedback").setting
    for step in setting.steps_of(setting.records(3)):
        assert [record["label"] for record in step] == 16 * [True, False]


def padded_tokens(setting: Setting) -> int:
    """Of the timed step's micro-batches, each as wide as its longest sequence."""
    step = setting.steps_of(setting.records(TIMED + 2))[1]
    total = 0
    for start in range(0, len(step), setting.examples):
        rows = step[start : start + setting.examples]
        longest = max(len(row["prompt"].split()) + len(c.split()) + 1 for row in rows for c in completions_of(row))
        total += longest * sum(len(completions_of(row)) for row in rows)
    return total


def test_the_tokens_that_bodies_compute_are_counted_with_their_padding(file):
    run = trained("padded", "dpo", file)
    setting = Work("toy", "dpo", file).setting
    assert run.note == ""
    assert run.scored == run.trained == [padded_tokens(setting)]
    assert run.tokens == [tokens_of(setting.steps_of(setting.records(3))[1])]


@pytest.mark.parametrize("objective", ["dpo", "kto", "grpo"])
def test_every_layout_computes_what_padded_rows_compute_with_fewer_tokens(objective: str, file: str):
    keys = [variant.key for variant in LAYOUTS if variant.key in ("padded", "sorted", "shared_prompt")]
    runs = [trained(key, objective, file) for key in keys if objective in variant_of(key).objectives]
    assert [run.note for run in checked(runs, bitwise=True)] == [""] * len(runs)
    padded, *others = (sum(run.scored) + sum(run.trained) for run in runs)
    assert all(tokens < padded for tokens in others)
    if objective != "kto":  # which also computes its mismatched pairs
        setting = Work("toy", objective, file).setting
        step = setting.steps_of(setting.records(3))[1]
        once = sum(len(row["prompt"].split()) + sum(len(c.split()) + 1 for c in completions_of(row)) for row in step)
        assert max(*runs[-1].scored, *runs[-1].trained) <= once < runs[-1].tokens[0]  # equal first words are shared too


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_trl_and_humanline_in_trl_compute_what_humanline_computes(objective: str, file: str):
    pytest.importorskip("trl")
    runs = [trained(key, objective, file) for key in ("copy", "trl", "in-trl")]
    assert [run.note for run in checked(runs, bitwise=True)] == ["", "", ""]
    assert [run.variant for run in runs] == [COPY, TRL, IN_TRL]
    assert len(runs[0].loss) == 2
    wrong = replace(runs[1], loss=[runs[1].loss[0], runs[1].loss[1] + 1e-4])
    assert checked([runs[0], wrong], bitwise=True)[1].note.startswith(WRONG)


def test_halos_log_probs_are_means_over_the_whole_step(file):
    runs = [trained(key, "dpo", file) for key in ("copy", "halos")]
    assert [run.note for run in checked(runs, bitwise=True)] == ["", ""]


def test_trl_turns_its_packing_of_pairs_off(file, tmp_path, capsys):
    pytest.importorskip("trl")
    from benchmarks.peers.trainers import Task, trl_dpo

    setting = Work("toy", "dpo", file).setting
    records = setting.records(3)
    arguments = setting.arguments(str(tmp_path), 3, CPU)
    task = Task(setting.model(CPU), setting.tokenizer(), "dpo", records, records, 32, arguments)
    assert trl_dpo(task, padding_free=True).padding_free is False
    assert available(["trl-packed"], "dpo") == []
    assert "Left out: TRL 1.16.0, padding_free" in capsys.readouterr().out


def run_of(variant: str, seconds: float, turn: int = 0, setting: str = "cpu dpo ultrafeedback", **figures) -> Run:
    sizes = {"weights_mib": 400.0, "tokens": [100], "scored": [200], "trained": [300], "peak_mib": 10.0}
    work = {"objective": "dpo", "lengths": "some", "accumulation": 4, "cpu_seconds": [seconds]}
    return Run(variant, turn, setting, "float32", 4, 64, 32000, **sizes | work | figures)


def test_goals_of_a_layout_are_judged_beside_padded_rows_and_trl():
    runs = [run_of(PADDED, 10.0), run_of(SHARED, 5.0, peak_mib=8.0), run_of(TRL, 15.0), run_of(IN_TRL, 8.0)]
    lines = layouts_table.judged(runs)
    assert [(line["measured"], line[""]) for line in lines] == [
        ("2.00", "met"),
        ("3.00", "met"),
        ("0.80", "missed"),
        ("1.88", "met"),
        ("1.00", "missed"),
    ]
    (padded, shared, *_) = layouts_table.lines(runs)
    assert (padded["times padded"], shared["times padded"]) == ("1.00", "2.00")
    assert (shared["real tokens"], shared["scored"], shared["trained"]) == ("100", "200", "300")


def test_a_table_has_the_documents_order_in_whichever_the_runs_came():
    runs = [run_of(SHARED, 5.0, setting="cpu grpo math8"), run_of(TRL, 15.0), run_of(PADDED, 10.0)]
    shown = [(line["case"], line["variant"]) for line in layouts_table.lines(runs)]
    assert shown == [("dpo ultrafeedback", PADDED), ("dpo ultrafeedback", TRL), ("grpo math8", SHARED)]


def test_a_step_s_cost_is_its_least_time_of_the_turns():
    turns = [run_of(SHARED, seconds, turn=turn) for turn, seconds in enumerate((5.0, 4.0, 6.0))]
    assert layouts_table.StepCost.of(turns).seconds == 4.0


def test_a_file_makes_the_table_of_the_document_and_the_row_of_the_readme(tmp_path):
    path = tmp_path / "lengths.csv"
    facts = {"machine": "one", "torch": "2", "transformers": "5", "timed steps": "1 after 1 that are not"}
    write(path, Run, facts, [run_of(PADDED, 10.0), run_of(SHARED, 5.0), run_of(TRL, 15.0)])
    table, row = report.table(path, []), report.table(path, ["row"])
    assert "**dpo ultrafeedback**: 4 x 4 pairs, some" in table
    assert "| dpo ultrafeedback | humanline, shared prompts | 5.00 | 2.00 |" in table
    assert "| dpo ultrafeedback | 5.0 | 3.00x | 1.00x | 2.00x | 1.00x |" in row


def test_the_command_takes_works_of_several_objectives_into_one_file(tmp_path, file, capsys, monkeypatch):
    def in_this_process(plan: Plan, work: Work, variant: Variant, turn: int) -> Run:
        return train(variant, work.setting, plan.device, plan.timed, turn)

    monkeypatch.setattr(Plan, "in_a_process", in_this_process)
    to = tmp_path / "lengths.csv"
    asked = ["train", "--model", "toy", "--device", "cpu", "--lengths", file, "--variants", "copy", "--csv", str(to)]
    main(asked)
    main([*asked, "--objective", "grpo"])
    _, runs = read(to, Run)
    assert [(run.setting, run.note) for run in runs] == [("toy dpo few", ""), ("toy grpo few", "")]
    assert "grpo few" in capsys.readouterr().out


def test_an_objective_needs_lengths(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--model", "toy", "--device", "cpu", "--objective", "grpo"])
    assert "expected --lengths with grpo, got none" in capsys.readouterr().err
