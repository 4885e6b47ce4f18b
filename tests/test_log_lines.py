"""The log lines that a person reads: aligned, of at most 80 columns, on the first process."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import ProgressCallback

from humanline_fused.printing import styled
from humanline_fused.training.run.log_lines import Lines, LogLines, write_lines
from tests.tiny_model import records, tiny_trainer, trained

DPO = {"loss": 0.6931, "epoch": 0.25, "rewards/margins": -0.01, "humanline/unclamped": 0.5, "num_tokens": 900}


def lines_of(*logs: dict[str, Any], last_step: int = 10) -> list[str]:
    """Return the lines of logs at steps 1, 2 ..., a second apart."""
    lines = Lines(step=0, tokens=0, last_step=last_step, now=0.0)
    return [line for step, given in enumerate(logs, 1) for line in lines.of(step, given, now=float(step))]


def test_a_line_has_the_numbers_of_a_step_below_their_titles() -> None:
    assert lines_of(DPO | {"time/training": 3.0}) == [
        "   step   epoch      loss    margin unclamped  tokens/s       ETA",
        "      1    0.25    0.6931   -0.0100    0.5000       300   0:00:09",
    ]


def test_the_tokens_per_second_are_those_since_the_line_before_without_evaluation() -> None:
    first = DPO | {"time/training": 3.0, "time/generation": 1.0}
    second = DPO | {"num_tokens": 1500, "time/training": 4.0, "time/generation": 2.0}
    assert [line.split()[-2] for line in lines_of(first, second)[1:]] == ["225", "300"]


def test_a_resumed_run_has_no_speed_at_its_first_line_and_an_eta_of_its_own_steps() -> None:
    lines = Lines(step=6, tokens=600, last_step=10, now=100.0)
    (_, first) = lines.of(8, DPO | {"time/training": 30.0}, now=104.0)
    assert first.split()[-2:] == ["-", "0:00:04"]
    (second,) = lines.of(9, DPO | {"num_tokens": 1000, "time/training": 31.0}, now=106.0)
    assert second.split()[-2:] == ["100", "0:00:02"]


def test_an_evaluation_has_its_numbers_against_the_initial_policy_in_the_same_columns() -> None:
    evaluation = {"eval_loss": 0.5, "eval_rewards_initial/margins": 0.25, "eval_humanline/unclamped": 0.75}
    assert lines_of(DPO | {"time/training": 3.0}, evaluation)[-1] == "      2    eval    0.5000    0.2500    0.7500"


def test_a_column_appears_with_a_new_header_once_its_metric_is_logged() -> None:
    plain = {"loss": 0.1, "epoch": 1.0, "humanline/unclamped": 1.0}
    headers = [line.split() for line in lines_of(plain, plain | {"reward": 0.5}, plain) if "ETA" in line]
    assert headers == [
        ["step", "epoch", "loss", "unclamped", "tokens/s", "ETA"],
        ["step", "epoch", "loss", "reward", "unclamped", "tokens/s", "ETA"],
    ]


def test_a_header_stands_once_before_an_evaluation_and_the_training_behind_it() -> None:
    evaluation = {"eval_loss": 0.5, "eval_rewards_initial/margins": 0.0}
    assert ["ETA" in line for line in lines_of(evaluation, DPO, DPO | {"epoch": 0.5})] == [True, False, False, False]


def test_a_value_that_is_missing_is_a_dash_and_one_that_is_not_finite_is_named() -> None:
    cells = lines_of({"loss": float("nan"), "epoch": 0.5})[1].split()
    assert cells == ["1", "0.50", "nan", "-", "-", "0:00:09"]


@pytest.mark.parametrize("value", [1e9, -1e9, 999.9999, -999.9999, float("-inf")])
def test_no_line_is_longer_than_80_columns_and_no_value_touches_its_neighbour(value: float) -> None:
    names = ("loss", "rewards/margins", "reward", "humanline/unclamped")
    lines = lines_of({**dict.fromkeys(names, value), "epoch": 1234.5, "num_tokens": 10**9, "time/training": 1e-2})
    assert max(map(len, lines)) <= 80
    assert [len(line.split()) for line in lines] == [8, 8]


def test_a_metric_of_a_callback_is_a_line_of_its_own() -> None:
    assert lines_of({"heldout/reward": 0.25, "epoch": 1.0}) == ["step 1, heldout/reward 0.25"]


def test_the_evaluation_after_the_last_step_is_printed_once() -> None:
    lines = Lines(step=0, tokens=0, last_step=4, now=0.0)
    evaluation = {"eval_loss": 0.5}
    assert len(lines.of(4, evaluation, now=1.0)) == 2
    assert lines.of(4, {"train_runtime": 61.0, "train_loss": 0.5}, now=1.0) == [
        "trained to step 4 in 0:01:01, mean loss 0.5000"
    ]
    assert lines.of(4, evaluation, now=2.0) == []


# A run


def test_a_run_prints_a_line_for_every_log_line_and_no_dictionary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = {"eval_dataset": records("dpo", 4, 5), "eval_strategy": "steps", "eval_steps": 3}
    trained(tmp_path, logging_steps=2, logging_first_step=True, **held_out)
    out = capsys.readouterr().out.splitlines()
    header = out.index("   step   epoch      loss    margin unclamped  tokens/s       ETA")
    rows = [line.split()[:2] for line in out[header + 1 :]]
    assert [row[0] for row in rows[:-1]] == ["1", "2", "3", "4", "6", "6"]
    assert [row[0] for row in rows[:-1] if row[1] == "eval"] == ["3", "6"]
    assert re.fullmatch(r"trained to step 6 in 0:\d\d:\d\d, mean loss \d\.\d{4}", out[-1])
    assert "{" not in "".join(out)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == [1, 2, 4, 6]


@pytest.mark.parametrize("dry_run", [False, True])
def test_the_summary_precedes_an_evaluation_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dry_run: bool
) -> None:
    held_out = {"eval_dataset": records("dpo", 4, 5), "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    trained(tmp_path, max_steps=2, logging_steps=1, dry_run=dry_run, **held_out)
    out = capsys.readouterr().out.splitlines()
    (summary,) = [number for number, line in enumerate(out) if line.startswith("dpo: ")]
    tables = [number for number, line in enumerate(out) if line.endswith("ETA")]
    rows = [line.split()[:2] for line in out if " eval " in line or line.split()[0] in ("1", "2")]
    assert (summary, len(tables)) == (0, 0 if dry_run else 1)
    expected = [["0", "eval"], ["1", "0.20"], ["1", "eval"], ["2", "0.40"], ["2", "eval"]]
    assert rows == ([] if dry_run else expected)


def test_a_line_is_written_at_once_into_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    with open(write, "w") as pipe, open(read, "rb"):
        monkeypatch.setattr(sys, "stdout", pipe)
        write_lines(["a line"])
        assert os.read(read, 100) == b"a line\n"


def test_the_lines_are_those_of_the_first_process_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = tiny_trainer(tmp_path)
    (printed,) = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, LogLines)]
    trainer.state.is_world_process_zero = False
    printed.on_train_begin(trainer.args, trainer.state, trainer.control)
    printed.on_log(trainer.args, trainer.state, trainer.control, logs=DPO)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_the_bar_is_transformers_own_and_can_be_turned_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], disable_tqdm: bool
) -> None:
    trained(tmp_path, max_steps=2, disable_tqdm=disable_tqdm)
    captured = capsys.readouterr()
    assert ("2/2" in captured.err) == (not disable_tqdm)
    assert "tokens/s" in captured.out


def test_a_script_may_remove_the_lines_as_it_removes_transformers_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.remove_callback(ProgressCallback)
    trainer.train()
    assert "tokens/s" not in capsys.readouterr().out


def test_styles_are_for_terminals_with_rich_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    assert styled("loss [1]", "bold") == "loss [1]"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert styled("loss [1]", "bold") == "\x1b[1mloss [1]\x1b[0m"
    monkeypatch.setattr("humanline_fused.printing.find_spec", lambda name: None)
    assert styled("loss [1]", "bold") == "loss [1]"
