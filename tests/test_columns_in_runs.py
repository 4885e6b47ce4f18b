"""The columns setting in commands, runs and rounds."""

import json
from pathlib import Path
from typing import Any

import pytest

from humanline_fused.cli import main
from humanline_fused.looking.stored_run import open_run
from humanline_fused.training.data.examples import fingerprint
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.data.prompts import prepare_prompts
from humanline_fused.training.inspection import inspect_data
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.objectives.table import ROUND
from tests.tiny_model import tiny_model, tiny_tokenizer, tiny_trainer

QUESTIONS = [{"ask": f"w{i} w2", "chosen": f" w{i + 3}", "rejected": f" w{i + 9} w5"} for i in range(6)]


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_humanline_data_takes_the_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = written(tmp_path / "a.jsonl", [{"question": row["ask"]} | row for row in QUESTIONS])
    assert main(["data", file]) == 2
    assert "columns: {prompt: question}, or columns: {prompt: null}" in capsys.readouterr().out
    assert main(["data", file, "--columns", "prompt=question"]) == 0
    assert "columns used      chosen, rejected, prompt" in capsys.readouterr().out
    assert main(["data", file, "--columns", "prompt=questoin"]) == 2
    assert "expected a column 'questoin' for prompt, this has 'question'" in capsys.readouterr().out


def test_training_takes_the_setting_from_a_file_and_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    data = written(tmp_path / "a.jsonl", QUESTIONS)
    (tmp_path / "a.yaml").write_text(f"model: {tmp_path / 'model'}\ndataset: {data}\ncolumns: {{prompt: ask}}\n")
    common = [
        "--per_device_train_batch_size",
        "2",
        "--use_cpu",
        "true",
        "--max_steps",
        "1",
        "--save_strategy",
        "no",
        "--max_length",
        "32",
    ]
    common += ["--disable_tqdm", "true", "--output_dir", str(tmp_path / "run"), "--dry_run", "true"]
    assert main(["train", "--config", str(tmp_path / "a.yaml"), *common]) == 0
    assert "data: 6 examples" in capsys.readouterr().out
    assert main(["train", "--config", str(tmp_path / "a.yaml"), *common, "--columns", "prompt=nothing"]) == 2
    assert f"{data}, line 1: columns: expected a column 'nothing' for prompt" in capsys.readouterr().err


def test_a_run_trains_on_the_mapped_columns(tmp_path: Path):
    named = [{"prompt": row["ask"]} | {name: row[name] for name in ("chosen", "rejected")} for row in QUESTIONS]
    mapped = tiny_trainer(tmp_path / "a", train_dataset=QUESTIONS, columns={"prompt": "ask"}).train_examples
    plain = tiny_trainer(tmp_path / "b", train_dataset=named).train_examples
    assert [example.prompt_ids.tolist() for example in mapped] == [example.prompt_ids.tolist() for example in plain]


def test_a_stored_run_reads_its_data_with_the_setting_again(tmp_path: Path):
    data = written(tmp_path / "a.jsonl", QUESTIONS)
    settings = {
        "dataset": data,
        "columns": {"prompt": "ask"},
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 1,
    }
    trainer = tiny_trainer(tmp_path / "run", train_dataset=None, **settings)
    trainer.train()
    tiny_model().save_pretrained(tmp_path / "model")
    stored = open_run(tmp_path / "run", model=str(tmp_path / "model"), dataset=data)
    assert stored.config.columns == {"prompt": "ask"}
    assert fingerprint(stored.examples()) == fingerprint(trainer.train_examples)


def test_prompts_without_the_columns_of_the_others_are_refused():
    rows = [{"prompt": "w1 " * 64}, {"prompt": "w1", "wanted": "w2"}, {"prompt": "w3", "best": 1}]
    said = (
        "dataset, example 2: expected the columns of dataset, example 1, as the reward function gets a list of each, "
        "but this lacks 'wanted', and has 'best'"
    )
    with pytest.raises(ValueError, match=said):
        prepare_prompts(rows, tiny_tokenizer(), ROUND, max_length=64)


def test_the_reward_function_gets_the_columns_as_they_are_in_the_dataset():
    rows = [{"question": "w1 w2", "answer": "w3"}]
    prompts = prepare_prompts(rows, tiny_tokenizer(), ROUND, max_length=8, columns={"prompt": "question"})
    assert prompts.texts == ["w1 w2"]
    assert prompts.columns == rows
    with pytest.raises(
        ValueError, match=r"lacks 'prompt'; .*columns: \{prompt: question\} makes 'question' the prompt"
    ):
        prepare_prompts(rows, tiny_tokenizer(), ROUND, max_length=8)


def test_a_bad_mapping_is_reported_with_the_first_row():
    for columns in ({"prompt": "aks"}, "prompt=aks"):
        with pytest.raises(ValueError, match=r"^dataset, example 0: columns: expected a column 'aks' for prompt"):
            prepare(QUESTIONS, tiny_tokenizer(), find_objective("dpo"), max_length=8, columns=columns)
    with pytest.raises(ValueError, match=r"columns: expected targets among .*, got 'promt'"):
        inspect_data(QUESTIONS, columns={"promt": "ask"})
