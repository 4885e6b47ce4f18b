"""Reports of `humanline data` on datasets."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config

from humanline_fused.cli import main
from humanline_fused.training.data.findings import DROPPED
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.data.prompts import prepare_prompts
from humanline_fused.training.inspection import Inspection, inspect_data, report
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.objectives.table import ROUND
from tests.tiny_model import records, tiny_tokenizer

PAIR = {"prompt": "w1 w2", "chosen": " w3", "rejected": " w4 w5"}
GROUP = {"prompt": "w1", "completions": [" w2", " w3 w4"], "rewards": [0.5, -1.0]}


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines_of(found: Inspection) -> list[str]:
    return report(found).splitlines()


def test_the_report_of_a_dataset_has_this_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [PAIR, PAIR | {"prompt": "w1 w2 w3", "rejected": " w3", "source": "me"}, PAIR | {"prompt": "w1 " * 9}]
    file = written(tmp_path / "pairs.jsonl", rows)
    assert main(["data", file, "--model", str(tmp_path / "model"), "--max_length", "4"]) == 0
    assert (
        capsys.readouterr().out
        == f"""\
type              preference data (prompt, chosen, rejected), for objective='dpo' or objective='kto'
rows              3
columns used      prompt, chosen, rejected
columns ignored   source
pairs             3, 1 with chosen equal to rejected

tokens             min  median    90 %     max
prompt               2       3       9       9
completion           2       2       3       3

examples          2 with max_length=4

findings
  rows with columns that are not used: 1, e.g. {file}, line 2: 'source'
  completions cut at max_length (end of sequence lost): 3, e.g. {file}, line 1
  pairs whose tokens that count are equal: 1, e.g. {file}, line 2
  dropped examples (prompt >= max_length): 1, e.g. {file}, line 3

first example
  prompt
    w1 w2
  chosen
    w3 <eos>
  rejected
    w4 w5 <eos>
"""
    )


def test_rows_that_cannot_be_used_are_listed_and_are_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = [{"prompt": "w1"}, "{\n", PAIR | {"chosen": 3}, {"prompt": "w1", "completion": "w2", "label": True}]
    file = written(tmp_path / "pairs.jsonl", [PAIR, *wrong, PAIR])
    assert main(["data", file]) == 2
    said = capsys.readouterr()
    assert said.err == "humanline data: error: 4 of 6 rows cannot be used: training would stop at the first\n"
    lines = said.out.splitlines()
    listed = lines[lines.index("rows that cannot be used") + 1 :]
    reasons = ["looks like prompt-only", "one JSON object per line", "all to be text", "looks like unpaired preference"]
    assert len(listed) == 4
    for line, number, reason in zip(listed, (2, 3, 4, 5), reasons, strict=True):
        assert line.startswith(f"  {file}, line {number}: ")
        assert reason in line


def test_training_stops_at_the_first_listed_row(tmp_path: Path):
    file = written(tmp_path / "pairs.jsonl", [PAIR, {"prompt": "w1", "chosen": "w2"}, PAIR])
    (reason,) = inspect_data(file).wrong
    with pytest.raises(ValueError, match="lacks 'rejected'") as caught:
        prepare(file, tiny_tokenizer(), find_objective("dpo"), max_length=8)
    assert str(caught.value) == reason


def test_rows_wrong_for_one_reason_are_one_line_and_ten_reasons_are_listed():
    lines = lines_of(inspect_data([PAIR, *[{"prompt": "w1"}] * 12]))
    assert lines[-2] == "rows that cannot be used"
    assert lines[-1].startswith("  dataset, example 1: ")
    assert lines[-1].endswith(" (and 11 more rows alike)")
    assert "rows              13, 12 of them cannot be used" in lines
    lines = lines_of(inspect_data([PAIR, *({"prompt": "w1", f"x{i}": "w2", "chosen": "w3"} for i in range(12))]))
    assert lines[-2].startswith("  dataset, example 10: ")
    assert lines[-1] == "  and 2 more"


def test_rows_whose_reason_quotes_them_are_one_line():
    good = {"prompt": "w1", "chosen": "w2", "rejected": "w3"}
    *_, heading, line = lines_of(inspect_data([good, *(good | {"chosen": number} for number in range(3))]))
    assert heading == "rows that cannot be used"
    assert line.startswith("  dataset, example 1: expected prompt and completions all to be text")
    assert line.endswith(", got [0, 'w3'] (and 2 more rows alike)")


@pytest.mark.parametrize(("objective", "others"), [(None, 0), ("dpo", 2)])
def test_a_misspelt_column_is_named_with_the_one_that_is_meant(objective: str | None, others: int):
    row = {"prompt": "w1", "choosen": "w2", "rejected": "w3"}
    (wrong,) = inspect_data([row] * (1 + others), objective=objective).wrong
    assert wrong.endswith(": 'choosen' looks like 'chosen': rename it, or columns: {chosen: choosen}")
    assert inspect_data([row], objective=objective, columns="chosen=choosen").num_wrong == 0


def test_groups_are_reported_with_sizes_rewards_and_those_without_signal():
    rows = [GROUP, GROUP | {"rewards": [1, 1]}, GROUP | {"completions": ["w1"] * 3, "rewards": [2, 0, 0]}]
    lines = lines_of(inspect_data(rows))
    assert "groups            3, each of 2 to 3 completions, 7 in all" in lines
    assert "rewards           -1 to 2" in lines
    assert "  without signal  1 with equal rewards: no gradient without a KL penalty" in lines
    assert lines[-4:] == ["  completion (reward 0.5)", "     w2", "  completion (reward -1)", "     w3 w4"]


def test_pairs_are_two_completions_for_kto():
    lines = lines_of(inspect_data([PAIR, PAIR], objective="kto"))
    assert "pairs             2, 0 with chosen equal to rejected" in lines
    assert "completions       2 desirable, 2 undesirable" in lines


def test_without_a_tokenizer_lengths_are_characters():
    lines = lines_of(inspect_data([PAIR, PAIR | {"prompt": ""}]))
    assert "characters         min  median    90 %     max" in lines
    assert "prompt               0       0       5       5" in lines
    assert "completion           3       3       6       6" in lines


def test_prompts_alone_are_for_rounds_whatever_the_objective(objective: str):
    chat = {"prompt": [{"role": "user", "content": "w1 w2"}], "label": "42"}
    found = inspect_data([chat], objective=objective, tokenizer=tiny_tokenizer())
    lines = lines_of(found)
    assert lines[0] == "type              prompt-only data (prompt), for every objective with rounds (--rollout_every)"
    assert "for the reward    label" in lines
    assert lines[-1] == "    <user> w1 w2 <eos> <assistant>"
    assert (found.num_wrong, found.prompt_lengths) == (0, [5])


def test_a_prompt_beside_a_part_of_a_pair_is_no_prompt_alone():
    (told,) = inspect_data([{"prompt": "w1", "chosen": " w2"}]).wrong
    assert "expected an object with the columns of preferences, rewards or prompts, got columns 'prompt'" in told


def test_prompts_that_a_round_drops_or_refuses_are_counted():
    prompts = [{"prompt": text} for text in ("w1", "w1 w2 w3", "")]
    found = inspect_data(prompts, tokenizer=tiny_tokenizer(), max_length=3)
    prepared = prepare_prompts(prompts[:2], tiny_tokenizer(), ROUND, max_length=3)
    assert found.findings.count(DROPPED) == prepared.findings.count(DROPPED) == 1
    reason = "dataset, example 2: expected a prompt of at least one token to sample from, got ''"
    assert found.wrong == [reason]
    with pytest.raises(ValueError, match=re.escape(reason)):
        prepare_prompts(prompts, tiny_tokenizer(), ROUND, max_length=3)
    assert f"examples          {found.num_examples} with max_length=3" in report(found)
    assert found.num_examples == 1


@pytest.mark.parametrize("length", ["0", "-5"])
def test_a_length_below_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], length: str):
    assert main(["data", written(tmp_path / "pairs.jsonl", [PAIR]), f"--max_length={length}"]) == 2
    assert f"--max_length: expected an integer >= 1, got {length}" in capsys.readouterr().err


def test_a_completion_that_repeats_its_prompt_is_counted():
    rows = [PAIR | {"chosen": "w1 w2 w3"}, PAIR]
    line = "  completions that begin with their prompt again: 1, e.g. dataset, example 0: 'w1 w2'"
    assert line in lines_of(inspect_data(rows))


def test_data_without_an_objective_and_unknown_columns_are_named():
    (reason,) = inspect_data([{"text": "w1"}]).wrong
    assert reason == "dataset, example 0: this looks like language modeling data (text), which no objective takes"
    (reason,) = inspect_data([{"question": "w1"}]).wrong
    assert reason.endswith(
        "expected an object with the columns of preferences, rewards or prompts, got columns 'question': "
        "columns: {prompt: question} makes 'question' the prompt"
    )


RUN = """\
dataset: data/pairs.jsonl
model: model
objective: kto
columns: {chosen: good}
max_length: 4
learning_rate: 1e-4
"""


@pytest.fixture
def with_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current directory with a run's file, its data and its tokenizer."""
    monkeypatch.chdir(tmp_path)
    tiny_tokenizer().save_pretrained("model")
    Path("data").mkdir()
    rows = [{"prompt": "w1 w2", "good": " w3", "rejected": " w4 w5"}]
    written(Path("data/pairs.jsonl"), rows)
    written(Path("other.jsonl"), rows * 3)
    Path("run.yaml").write_text(RUN)


@pytest.mark.usefixtures("with_config")
def test_a_runs_file_gives_the_data_and_their_settings_and_options_come_first(capsys: pytest.CaptureFixture[str]):
    given = ["--model=model", "--objective=kto", "--columns=chosen=good", "--max_length=4"]
    assert main(["data", "--config", "run.yaml"]) == 0
    text = capsys.readouterr().out
    assert main(["data", "data/pairs.jsonl", *given]) == 0
    assert text == capsys.readouterr().out
    assert main(["data", "other.jsonl", "--config=run.yaml", "--max_length=5", "--objective=dpo"]) == 0
    text = capsys.readouterr().out
    assert "\nrows              3\n" in text
    assert "\nexamples          3 with max_length=5\n" in text
    assert "objective='dpo'" in text.splitlines()[0]


@pytest.mark.usefixtures("with_config")
@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("learning_rat: 1", "--config: run.yaml: 'learning_rat' is not a field; did you mean learning_rate?"),
        ("max_length: 0", "--max_length: expected an integer >= 1, got 0"),
        ("dataset: absent.jsonl", "expected a JSONL file at absent.jsonl, found none"),
        ("strict_data: true", "cut at max_length"),
    ],
)
def test_a_runs_file_that_training_would_refuse_is_refused(added: str, said: str, capsys: pytest.CaptureFixture[str]):
    kept = [line for line in RUN.splitlines() if not line.startswith(added.split(":")[0])]
    Path("run.yaml").write_text("\n".join([*kept, added]))
    assert main(["data", "--config", "run.yaml"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([], [], "expected at least one row, got none"),
        ([PAIR], ["--max_length", "2", "--model", "model"], "no training example would be left"),
        ([PAIR], ["--model", "."], "humanline data: error: --model: "),
        (
            [PAIR],
            ["--model", "./no"],
            "--model: ./no: expected a folder written by save_pretrained, or a model name",
        ),
    ],
)
def test_an_error_that_would_stop_training_is_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows: list[Any],
    options: list[str],
    said: str,
):
    monkeypatch.chdir(tmp_path)
    tiny_tokenizer().save_pretrained("model")
    assert main(["data", written(Path("pairs.jsonl"), rows), *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", '{"added_tokens": 3}'),
        ("config.json", '{"model_type": "gpt2", "n_head": "x"}'),
        ("config.json", '{"model_type": "gpt2", "n_head": 0}'),
        ("generation_config.json", "[1]"),
    ],
)
def test_a_damaged_file_of_the_model_is_one_line_that_names_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
):
    tiny_tokenizer().save_pretrained(model := tmp_path / "model")
    (model / name).write_text(content)
    assert main(["data", written(tmp_path / "pairs.jsonl", [PAIR]), "--model", str(model)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(f"humanline data: error: --model: {model}: expected a ")
    assert "written by save_pretrained, which cannot be loaded (" in line


def test_the_counts_are_those_of_training(objective: str):
    rows = records(objective, 12)
    found = inspect_data(rows, objective=objective, tokenizer=tiny_tokenizer(), max_length=8)
    kind = find_objective(objective)
    data = prepare(rows, tiny_tokenizer(), kind, max_length=8)
    assert found.findings == data.findings
    assert found.num_examples == len(data.examples)


def test_a_sequence_longer_than_the_models_table_of_positions_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    GPT2Config(n_positions=16, n_layer=1, n_embd=8, n_head=1, vocab_size=100).save_pretrained(tmp_path / "model")
    file = written(tmp_path / "pairs.jsonl", [PAIR, PAIR | {"chosen": " w3" * 20}])
    model = ["--model", str(tmp_path / "model")]
    assert main(["data", file, *model]) == 2
    assert "at most 16 tokens, the model's table of positions, got 23 (dataset example 1)" in capsys.readouterr().err
    assert main(["data", file, *model, "--max_length", "16"]) == 0


def test_the_models_config_gives_its_stop_tokens_if_it_has_no_generation_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' w9 ' }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "model")
    turns = [{"role": role, "content": "w1"} for role in ("user", "assistant")]
    file = written(tmp_path / "pairs.jsonl", [{"prompt": turns[:1], "chosen": turns[1:], "rejected": turns[1:]}])
    for ends, warned in ((1, True), ([1, tokenizer.convert_tokens_to_ids("w9")], False)):
        GPT2Config(vocab_size=100, eos_token_id=ends).save_pretrained(tmp_path / "model")
        assert main(["data", file, "--model", str(tmp_path / "model")]) == 0
        assert ("completions that end without a stop token" in capsys.readouterr().out) == warned


def test_strict_data_with_a_loss_exit_with_2_after_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    same = written(tmp_path / "same.jsonl", [PAIR, PAIR | {"rejected": " w3"}])
    good = written(tmp_path / "good.jsonl", [PAIR, PAIR])
    model = ["--model", str(tmp_path / "model"), "--strict"]
    assert main(["data", good, *model]) == 0
    assert main(["data", same, *model]) == 2
    said = capsys.readouterr()
    assert "first example" in said.out
    loss = f"pairs whose tokens that count are equal: 1, e.g. {same}, line 2"
    assert said.err.endswith(f"--strict: expected data that are learnt as they are written, got {loss}\n")
