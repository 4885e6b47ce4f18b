"""The first run: what `humanline init` writes, and what `humanline train` says at its end."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

from humanline_fused.cli import main
from humanline_fused.demo import first_run, task
from humanline_fused.demo.first_run import write_first_run
from humanline_fused.looking.result import Row, ending, result_lines, rows_of, table


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Current directory with the first run in `first`, for lists of one or two letters."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(first_run, "LETTERS", (1, 2))
        patch.setattr(first_run, "PROMPTS", {"pairs": 64, "heldout": 24, "start": 40})
        write_first_run(Path("first"), start_steps=40)
        yield Path("first")


def pairs(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run_of(folder: Path, *lines: dict[str, float]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_a_first_run_has_a_model_pairs_held_out_pairs_and_settings(first: Path) -> None:
    assert sorted(path.name for path in first.iterdir()) == ["heldout.jsonl", "pairs.jsonl", "start", "train.yaml"]
    for name in ("pairs", "heldout"):
        assert pairs(first / f"{name}.jsonl")
        for pair in pairs(first / f"{name}.jsonl"):
            assert task.reward(pair["prompt"], pair["chosen"]) > task.reward(pair["prompt"], pair["rejected"])


def test_a_chat_puts_the_last_question_as_the_data_have_it(first: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(first / "start")
    turns = [("user", "sort ba:"), ("assistant", "ab"), ("user", "sort dc:")]
    messages = [{"role": role, "content": text} for role, text in turns]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert asked == "sort dc: "
    answered = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "cd"}], tokenize=False)
    assert answered == f"sort dc: cd{tokenizer.eos_token}"


def test_no_prompt_of_a_first_run_is_both_trained_on_and_held_out(first: Path) -> None:
    trained, held_out = ({pair["prompt"] for pair in pairs(first / f"{name}.jsonl")} for name in ("pairs", "heldout"))
    assert not trained & held_out


def test_training_ends_with_a_table_a_picture_and_the_next_command(
    first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--max_steps=4", "--eval_steps=2", "--save_steps=4", "--per_device_train_batch_size=4"]
    assert main(["train", "--config", "first/train.yaml", *short]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("saved to first/run")
    held_out = len(pairs(first / "heldout.jsonl"))
    assert lines[start + 1].split() == ["held-out", "data", f"({held_out}", "examples)", "before", "after"]
    *name, before, after = lines[start + 2].split()
    assert (name, before != "-", after != "-") == (["reward", "of", "its", "own", "answers"], True, True)
    assert lines[start + 3].split()[:-1] == ["margin", "to", "the", "initial", "policy", "0.0000"]
    assert lines[-3].startswith("loss and rewards/* of the log compare with the policy of at most 25 updates ago")
    assert lines[-2:] == ["picture: first/run/plot.png", "next: humanline chat first/run"]
    assert Path("first/run/plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_bounds_and_k_of_a_first_run_are_in_its_settings(first: Path) -> None:
    settings = yaml.safe_load((first / "train.yaml").read_text())
    assert (settings["log_epsilon_P"], settings["log_epsilon_R"], settings["sync_every"]) == (-0.2, 0.2, 25)


def test_init_refuses_a_folder_with_files(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(first.iterdir())
    assert main(["init", "first"]) == 2
    said = capsys.readouterr().err
    assert "first: expected a new or empty folder, it has " in said
    assert said.endswith(": remove the folder, or name another\n")
    assert sorted(first.iterdir()) == before


def test_the_table_compares_the_last_evaluation_with_the_one_before_the_first_step() -> None:
    margins = np.array([0.0, np.nan, 0.2, 0.5])
    lines = {
        "step": np.array([0.0, 1.0, 2.0, 4.0]),
        "eval_rewards_initial/margins": margins,
        "eval_rewards_initial/accuracies": margins,
        "eval_loss": 0.7 - margins,
    }
    assert rows_of(lines)[0] == [
        Row("margin to the initial policy", 0.0, 0.5),
        Row("accuracy", None, 0.5),  # equal rewards before the first step
        Row("loss against the initial policy", 0.7, pytest.approx(0.2, abs=1e-15)),
    ]


def test_without_an_evaluation_before_the_first_step_only_the_margin_is_known_there(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"step": 4, "eval_rewards_initial/margins": 0.25, "eval_loss": 0.5})
    assert result_lines(run, held_out=3, sync_every=None) == table(
        "held-out data (3 examples)",
        [Row("margin to the initial policy", 0.0, 0.25), Row("loss against the initial policy", None, 0.5)],
    )


def test_the_table_of_rounds_has_their_first_and_last_reward(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"step": 1, "reward": 0.25}, {"step": 2, "reward": 0.5})
    header, row, about = result_lines(run, held_out=0, sync_every=4)
    assert (header.split()[-2:], row.split()) == (["first", "last"], ["reward", "0.2500", "0.5000"])
    assert "at most 4 updates ago" in about


def test_without_held_out_data_and_rewards_the_end_says_that_nothing_shows_progress(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"step": 1, "loss": 0.7})
    said, command = ending(run, held_out=0, sync_every=4)
    assert said.startswith("no held-out data: nothing shows what the policy has learnt")
    assert command == f"next: humanline chat {run}"
