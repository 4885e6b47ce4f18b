"""Tokens are prepared once, kept beside the run, and read by the next start, by every process and by `show`."""

import datetime
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from humanline_fused.cli import main
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.data.parallel import map_chunks
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.data.prompts import PreparedPrompts
from humanline_fused.training.data.store import ARRAYS, load
from humanline_fused.training.data.tokenizing.tokenization import RowTokenizer
from humanline_fused.training.kept_tokens import key_of
from humanline_fused.training.objectives import find_objective
from tests.tiny_model import CHAT_TEMPLATE, records, tiny_config, tiny_model, tiny_tokenizer, tiny_trainer

DATED = "{{ '<system> w' + strftime_now('%j') | int | string + ' <eos> ' }}" + CHAT_TEMPLATE
STEPS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def chat(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def chats(number: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": chat("user", f"w{i} w1"),
            "chosen": chat("assistant", f"w{i + 1}"),
            "rejected": chat("assistant", "w9"),
        }
        for i in range(number)
    ]


def dated_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = DATED
    return tokenizer


def on_day(monkeypatch: pytest.MonkeyPatch, day: int) -> None:
    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Day":
            return cls(2026, 1, day)

    monkeypatch.setattr(chat_template_utils, "datetime", Day)


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def dated_trainer(folder: Path, data: Path, **settings: Any) -> HumanlineTrainer:
    args = tiny_config(folder, dataset=str(data), model=str(folder.parent / "start"), **STEPS | settings)
    return HumanlineTrainer(args=args)


@pytest.fixture
def stopped_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder of a run that was stopped after step 2 of 4 on the first day, and its data."""
    tiny_model().save_pretrained(tmp_path / "start")
    dated_tokenizer().save_pretrained(tmp_path / "start")
    data = jsonl(tmp_path / "data.jsonl", chats(8))
    on_day(monkeypatch, 1)
    dated_trainer(tmp_path / "run", data).train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    return tmp_path / "run", data


def test_a_run_whose_template_writes_the_date_resumes_on_the_next_day(
    stopped_run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    run, data = stopped_run
    on_day(monkeypatch, 2)
    resumed = dated_trainer(run, data, resume_from_checkpoint="auto")
    assert resumed.train_examples[0].prompt_ids[1] == tiny_tokenizer().get_vocab()["w1"]
    resumed.train()
    assert resumed.state.global_step == 4
    another = dated_trainer(run.parent / "another", data)
    assert another.train_examples[0].prompt_ids[1] == tiny_tokenizer().get_vocab()["w2"]


def test_without_the_kept_tokens_the_next_day_is_refused(
    stopped_run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    run, data = stopped_run
    shutil.rmtree(run / "tokens")
    on_day(monkeypatch, 2)
    with pytest.raises(ValueError, match="expected the batches that"):
        dated_trainer(run, data, resume_from_checkpoint="auto").train()


def test_show_reads_the_kept_tokens_on_the_next_day_without_the_data(
    stopped_run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    run, data = stopped_run
    data.unlink()
    on_day(monkeypatch, 2)
    assert main(["show", str(run), "--step", "2"]) == 0


def test_a_preparation_that_was_killed_leaves_nothing_in_the_way(
    stopped_run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    run, data = stopped_run
    (kept,) = (run / "tokens").iterdir()
    unfinished = kept.with_name("0123456789abcdef.writing-1")
    shutil.copytree(kept, unfinished)
    (unfinished / "notes.json").unlink()
    assert main(["show", str(run), "--step", "2"]) == 0
    on_day(monkeypatch, 2)
    dated_trainer(run, data, resume_from_checkpoint="auto").train()


def test_a_link_with_the_name_of_an_unfinished_folder_is_removed_and_not_followed(tmp_path: Path):
    tiny_trainer(tmp_path / "run")
    (kept,) = (tmp_path / "run" / "tokens").iterdir()
    shutil.rmtree(kept)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "ids.npy").write_text("another's")
    kept.with_name(f"{kept.name}.writing-{os.getpid()}").symlink_to(tmp_path / "elsewhere")
    tiny_trainer(tmp_path / "run")
    assert list((tmp_path / "run" / "tokens").iterdir()) == [kept]
    assert not kept.is_symlink()
    assert (tmp_path / "elsewhere" / "ids.npy").read_text() == "another's"
    assert kept.stat().st_mode == kept.parent.stat().st_mode


def interrupted(chunk: Sequence[int]) -> list[int]:
    os.kill(os.getpid(), signal.SIGINT)
    return list(chunk)


def test_ctrl_c_does_not_end_the_processes_that_tokenise_with_a_traceback():
    assert [done for _, done in map_chunks(interrupted, range(3), num_proc=1)] == [[0, 1, 2]]


def test_the_second_start_tokenises_nothing_and_shares_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = tiny_trainer(tmp_path)
    monkeypatch.setattr(RowTokenizer, "__call__", lambda *_: pytest.fail("tokenised again"))
    second = tiny_trainer(tmp_path)
    for trainer in (first, second):
        assert isinstance(trainer.train_data.examples.arrays["ids"], np.memmap)
    assert [e.prompt_ids.tolist() for e in second.train_examples] == [
        e.prompt_ids.tolist() for e in first.train_examples
    ]
    assert second.train_data.findings == first.train_data.findings


def test_prompts_of_rounds_are_kept_with_their_texts_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{"prompt": f"w{i}" + " w1" * 40 * (i == 1), "wanted": f"w{i}"} for i in range(4)]
    settings: dict[str, Any] = {"objective": "grpo", "rollout_every": 1, "reference": "copy", "num_generations": 2}
    settings |= {"per_device_train_batch_size": 2, "max_completion_length": 4}

    def trainer() -> HumanlineTrainer:
        args = tiny_config(tmp_path, **settings)
        given: dict[str, Any] = {
            "train_dataset": rows,
            "reward_function": lambda completions, **_: [0.0] * len(completions),
        }
        return HumanlineTrainer(tiny_model(), args, processing_class=tiny_tokenizer(), **given)

    first = trainer()
    monkeypatch.setattr(RowTokenizer, "__call__", lambda *_: pytest.fail("tokenised again"))
    second = trainer()
    assert isinstance(first.train_data, PreparedPrompts)
    assert isinstance(second.train_data, PreparedPrompts)
    assert second.train_data.texts == first.train_data.texts == ["w0", "w2", "w3"]
    assert second.train_data.columns == [{"wanted": "w0"}, {"wanted": "w2"}, {"wanted": "w3"}]
    assert second.train_data.findings.lines() == ["dropped examples (prompt >= max_length): 1, e.g. dataset, example 1"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path):
    tiny_trainer(tmp_path)
    (folder,) = (tmp_path / "tokens").iterdir()
    folder.rename(folder.with_name(f"{folder.name}.writing-1"))
    tiny_trainer(tmp_path)
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [folder.name]


def test_a_dry_run_keeps_nothing(tmp_path: Path):
    tiny_trainer(tmp_path / "run", dry_run=True).train()
    assert not (tmp_path / "run" / "tokens").exists()


def test_the_key_is_of_content_tokenizer_template_and_settings_not_of_times_and_names(tmp_path: Path):
    rows = records("dpo", 4)
    file, other = jsonl(tmp_path / "a.jsonl", rows), jsonl(tmp_path / "b.jsonl", rows)
    os.utime(other, (1, 1))
    key = key_of(file, "train", tiny_tokenizer(), {"max_length": 8})
    assert key == key_of(other, "train", tiny_tokenizer(), {"max_length": 8})
    ends = tiny_tokenizer()
    ends.eos_token = "w1"
    changed = jsonl(tmp_path / "c.jsonl", [*rows[:-1], rows[-1] | {"chosen": " w5"}])
    keys = {
        key,
        key_of(changed, "train", tiny_tokenizer(), {"max_length": 8}),
        key_of(file, "train", dated_tokenizer(), {"max_length": 8}),
        key_of(file, "train", ends, {"max_length": 8}),
        key_of(file, "train", tiny_tokenizer(), {"max_length": 9}),
        key_of(rows, "train", tiny_tokenizer(), {"max_length": 8}),
        key_of([*rows[:-1], rows[-1] | {"chosen": " w5"}], "train", tiny_tokenizer(), {"max_length": 8}),
    }
    assert len(keys) == 7


def test_tokens_that_cannot_be_written_are_an_error_with_their_folder_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*given: Any) -> None:
        raise OSError("64 requested and 8 written")  # NumPy's words for a full disk

    data = prepare(chats(2), tiny_tokenizer(), find_objective("dpo"), max_length=64)
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"tokens/key: the tokens of the data cannot be written: 64 requested and 8 wr"):
        data.examples.save(tmp_path / "tokens" / "key", {})
    assert list((tmp_path / "tokens").iterdir()) == []


def test_damaged_tokens_are_refused_with_the_folder(tmp_path: Path):
    tiny_trainer(tmp_path)
    (folder,) = (tmp_path / "tokens").iterdir()
    (folder / "ids.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=f"{folder.name}: expected the tokens of an earlier start, remove the folder"):
        tiny_trainer(tmp_path)


@pytest.mark.parametrize("name", [*ARRAYS, "notes"])
def test_bytes_behind_the_end_of_a_kept_file_are_refused(tmp_path: Path, name: str):
    tiny_trainer(tmp_path)
    (folder,) = (tmp_path / "tokens").iterdir()
    (file,) = folder.glob(f"{name}.*")
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=f"{folder.name}: expected the tokens of an earlier start, remove the folder"):
        load(folder)


def test_a_changed_letter_in_the_kept_notes_is_refused(tmp_path: Path):
    data = prepare(chats(2), tiny_tokenizer(), find_objective("dpo"), max_length=64)
    data.examples.save(tmp_path / "key", {"columns": ["17"]})
    found = load(tmp_path / "key")
    assert found is not None
    assert found[1] == {"columns": ["17"]}
    notes = tmp_path / "key" / "notes.json"
    notes.write_text(notes.read_text().replace('"17"', '"16"'))
    with pytest.raises(ValueError, match=r"notes\.json: its CRC-32 is another"):
        load(tmp_path / "key")


@pytest.mark.parametrize("turns", [1, 3])
def test_examples_take_little_more_memory_than_their_ids(turns: int):
    said = " ".join(f"w{i % 90}" for i in range(150))
    answer = [*chat("assistant", said), *chat("user", said), *chat("assistant", said)][:turns]
    row = {"prompt": chat("user", said), "chosen": answer, "rejected": [*answer[:-1], *chat("assistant", f"{said} w1")]}
    data = prepare([row] * 50, tiny_tokenizer(), find_objective("dpo"), max_length=4096)
    (masked,) = {bool(example.masks) for example in data.examples}
    assert masked == (turns > 1)
    assert data.examples.nbytes <= 1.3 * 4 * len(data.examples.arrays["ids"])


def test_examples_are_views_that_can_be_indexed_as_a_list(tmp_path: Path):
    rows = records("dpo", 5)
    examples = prepare(rows, tiny_tokenizer(), find_objective("dpo"), max_length=64).examples
    assert len(examples) == 5
    assert torch.equal(examples[-1].prompt_ids, examples[4].prompt_ids)
    assert [len(e.prompt_ids) for e in examples[1:3]] == [len(examples[i].prompt_ids) for i in (1, 2)]
    with pytest.raises(IndexError):
        examples[5]


@pytest.mark.parametrize("num_proc", [1, 2])
def test_processes_give_the_same_examples_and_findings(num_proc: int):
    rows = chats(200)
    here, there = (
        prepare(rows, tiny_tokenizer(), find_objective("dpo"), max_length=64, num_proc=n) for n in (None, num_proc)
    )
    assert all(np.array_equal(here.examples.arrays[name], there.examples.arrays[name]) for name in here.examples.arrays)
    assert here.findings == there.findings


@pytest.mark.parametrize("given", [None, "true"])
def test_the_tokenizers_own_threads_are_off_only_while_rows_are_prepared(
    monkeypatch: pytest.MonkeyPatch, given: str | None
):
    name = "TOKENIZERS_PARALLELISM"
    monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv(name, given)
    seen = set()
    for _ in map_chunks(lambda chunk: seen.add(os.environ[name]), range(100)):
        pass
    assert seen == {given or "false"}
    assert os.environ.get(name) == given
    with pytest.raises(ValueError, match="looks like prompt-only"):
        prepare([*chats(1), {"prompt": "line 2"}], tiny_tokenizer(), find_objective("dpo"), max_length=64)
    assert os.environ.get(name) == given
