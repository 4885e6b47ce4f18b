"""Checkpoints are atomic, include the reference, and resume to the uninterrupted result."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from humanline_fused import durable
from humanline_fused.reference import CopyReference
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.run.checkpoint import (
    STAGING,
    faults,
    newest_complete,
    publish,
    resolve_resume,
)
from humanline_fused.training.run.manifest import MANIFEST
from humanline_fused.training.run.resumable import load_run_state
from tests import killed_run
from tests.tiny_model import records, tiny_trainer

SAVING = {"save_strategy": "steps", "save_steps": 2}


def saved_run(output_dir: Path, **settings: Any) -> HumanlineTrainer:
    trainer = tiny_trainer(output_dir, **SAVING | settings)
    trainer.train()
    return trainer


def weights(trainer: HumanlineTrainer) -> list[torch.Tensor]:
    return [p.detach() for p in trainer.model.parameters()]


def logged(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without time-dependent values."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "runtime", "per_second")
    kept = [
        {k: v for k, v in line.items() if not k.endswith(clock) and not k.startswith("time/")}
        for line in lines
        if "train_runtime" not in line
    ]
    return [line for line in kept if line.keys() - {"step", "epoch"}]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    saved_run(folder)
    return folder


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """Folder of a finished run with checkpoints at steps 2, 4 and 6."""
    return shutil.copytree(finished, tmp_path / "run")


# Resuming


class FirstStep(TrainerCallback):
    """Records the step at which a run begins."""

    step: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step


@pytest.mark.parametrize("reference", ["lookahead", "copy", "frozen"])
def test_a_resumed_run_is_bitwise_equal_to_the_uninterrupted_one(tmp_path: Path, objective: str, reference: str):
    held_out = records(objective, 5, seed=5)
    settings = {
        "objective": objective,
        "reference": reference,
        "sync_every": None if reference == "frozen" else 3,
        "eval_dataset": held_out,
    }
    settings |= {"eval_strategy": "steps", "eval_steps": 3, "gradient_accumulation_steps": 2}
    whole = saved_run(tmp_path / "whole", **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    begun = FirstStep()
    resumed = tiny_trainer(tmp_path / "cut", resume_from_checkpoint="auto", callbacks=[begun], **SAVING | settings)
    resumed.train()
    assert begun.step == 4
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")


def test_a_checkpoint_restores_the_copied_reference_and_not_the_initial_one(tmp_path: Path):
    whole = saved_run(tmp_path / "run", reference="copy", sync_every=4)
    resumed = tiny_trainer(tmp_path / "run", reference="copy", sync_every=4)
    assert isinstance(whole.reference, CopyReference)
    assert isinstance(resumed.reference, CopyReference)
    at_start = resumed.reference.model.get_parameter("lm_head.weight").clone()
    resumed.train(str(tmp_path / "run" / "checkpoint-6"))
    restored = resumed.reference.model.get_parameter("lm_head.weight")
    assert torch.equal(restored, whole.reference.model.get_parameter("lm_head.weight"))
    assert not torch.equal(restored, at_start)


def test_a_resumed_finished_run_takes_no_further_step(run_dir: Path):
    resumed = tiny_trainer(run_dir, resume_from_checkpoint="auto", **SAVING)
    before = (run_dir / "checkpoint-6" / "model.safetensors").read_bytes()
    resumed.train()
    resumed.save_model()
    assert resumed.state.global_step == 6
    assert (run_dir / "model.safetensors").read_bytes() == before


def test_resuming_drops_metrics_after_the_checkpoint_and_incomplete_lines(run_dir: Path):
    expected = logged(run_dir)
    shutil.rmtree(run_dir / "checkpoint-6")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    tiny_trainer(run_dir, resume_from_checkpoint="auto", **SAVING).train()
    assert logged(run_dir) == expected
    seconds = [json.loads(line)["seconds"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)


def test_a_run_killed_at_any_write_resumes_bitwise(tmp_path: Path):
    equal = killed_run.resumed(tmp_path, every=3)
    assert len(equal) > 20
    assert all(equal.values()), equal


def test_resuming_from_an_older_checkpoint_is_refused_while_a_newer_one_exists(run_dir: Path):
    older = run_dir / "checkpoint-2"
    with pytest.raises(ValueError, match=r"checkpoint-6 is newer than .*checkpoint-2: remove it, or resume into ano"):
        resolve_resume(run_dir, str(older))
    assert resolve_resume(run_dir.parent / "elsewhere", str(older)) == str(older)


def test_a_run_killed_while_it_replaces_a_checkpoint_loses_neither(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    final, rename = run_dir / "checkpoint-6", os.rename
    staged = run_dir / STAGING / final.name
    shutil.copytree(final, staged)
    (staged / MANIFEST).unlink()

    def killed_before_the_second(source: Path, target: Path) -> None:
        if target == final:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed_before_the_second)
        with pytest.raises(KeyboardInterrupt):
            publish(staged, final)
    assert not final.exists()
    assert resolve_resume(run_dir, "auto") == str(final)
    assert faults(final) == []


# Complete checkpoints


def test_an_incomplete_folder_is_never_treated_as_a_checkpoint(run_dir: Path):
    """transformers checks only the name."""
    torn = run_dir / "checkpoint-8"
    shutil.copytree(run_dir / "checkpoint-6", torn)
    (torn / "files.json").unlink()
    assert get_last_checkpoint(str(run_dir)) == str(torn)
    assert newest_complete(run_dir) == run_dir / "checkpoint-6"


@pytest.mark.parametrize(
    "name",
    ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors", "run_state.pt"],
)
def test_a_missing_or_short_file_is_named_and_auto_uses_the_previous_checkpoint(run_dir: Path, name: str):
    file = run_dir / "checkpoint-6" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert faults(file.parent) == [f"{name} has {len(content) - 1} bytes instead of {len(content)}"]
    file.unlink()
    assert faults(file.parent) == [f"{name} is missing"]
    assert resolve_resume(run_dir, "auto") == str(run_dir / "checkpoint-4")
    with pytest.raises(ValueError, match=rf"checkpoint-6 is not a complete checkpoint: {name} is missing"):
        tiny_trainer(run_dir).train(str(file.parent))


@pytest.mark.parametrize("reference", ["lookahead", "copy"])
def test_a_checkpoint_with_the_former_name_of_the_run_state_is_resumed(tmp_path: Path, reference: str):
    settings = {"reference": reference, "sync_every": 3}
    whole = saved_run(tmp_path, **settings)
    shutil.rmtree(tmp_path / "checkpoint-6")
    checkpoint = tmp_path / "checkpoint-4"
    (checkpoint / "run_state.pt").rename(checkpoint / "reference.pt")
    sizes = {file.name: file.stat().st_size for file in checkpoint.iterdir() if file.name != MANIFEST}
    (checkpoint / MANIFEST).write_text(json.dumps(sizes))
    resumed = tiny_trainer(tmp_path, **SAVING | settings)
    resumed.train("auto")
    assert all(torch.equal(mine, other) for mine, other in zip(weights(resumed), weights(whole), strict=True))
    assert load_run_state(checkpoint).keys() == load_run_state(tmp_path / "checkpoint-6").keys()


def test_a_checkpoint_without_optimizer_cannot_be_resumed_from(tmp_path: Path):
    saved_run(tmp_path, save_only_model=True)
    with pytest.raises(ValueError, match="saved without the optimizer"):
        resolve_resume(tmp_path, str(tmp_path / "checkpoint-6"))


def test_steps_are_compared_as_numbers(tmp_path: Path):
    saved_run(tmp_path, max_steps=11)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-11"


@pytest.mark.parametrize("word", ["true", "True"])
def test_true_and_false_may_be_strings_as_on_a_command_line(run_dir: Path, word: str):
    assert resolve_resume(run_dir, word) == str(run_dir / "checkpoint-6")
    assert resolve_resume(run_dir / "elsewhere", "false") is None


def test_without_a_checkpoint_auto_starts_fresh_and_true_is_an_error(tmp_path: Path):
    assert resolve_resume(tmp_path / "nowhere", "auto") is None
    with pytest.raises(ValueError, match=r"expected a complete checkpoint in .*found none"):
        resolve_resume(tmp_path, True)


def test_a_fresh_start_in_a_folder_with_checkpoints_is_refused_and_deletes_nothing(run_dir: Path):
    before = (run_dir / "metrics.jsonl").read_text()
    with pytest.raises(
        ValueError, match="checkpoint-6 is from an earlier run: continue it with resume_from_checkpoint"
    ):
        saved_run(run_dir)
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_the_staging_folder_is_removed_and_old_checkpoints_are_rotated(tmp_path: Path):
    saved_run(tmp_path, save_total_limit=2)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert not (tmp_path / STAGING).exists()


def test_the_best_checkpoint_is_recorded_with_its_final_name_and_loaded_at_the_end(tmp_path: Path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 2}
    trainer = saved_run(tmp_path, eval_dataset=records("dpo", 5, seed=5), **best)
    folder = trainer.state.best_model_checkpoint
    assert folder == str(tmp_path / f"checkpoint-{trainer.state.best_global_step}")
    state = json.loads((Path(folder) / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == folder
    assert faults(Path(folder)) == []


def test_a_file_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    durable.save({"a": 1}, tmp_path / "file.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["file.pt"]

    def torn(state: Any, file: Any) -> None:
        file.write(b"cut off")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="no space left"):
        durable.save({"a": 2}, tmp_path / "file.pt")
    assert torch.load(tmp_path / "file.pt") == {"a": 1}


@pytest.mark.parametrize("written", [1, 2, 3])
def test_a_full_disk_ends_the_run_and_the_previous_checkpoint_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
):
    save, calls = torch.save, iter(range(100))

    def full(state: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-4" in str(path) and next(calls) >= written:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        save(state, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"checkpoint-4 could not be written .*checkpoint-2 is complete: resume from"):
            saved_run(tmp_path)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-2"
    resumed = tiny_trainer(tmp_path, resume_from_checkpoint="auto", **SAVING)
    resumed.train()
    assert resumed.state.global_step == 6


# Checkpoints of another run


@pytest.fixture(scope="module")
def synced_every_third_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synced")
    saved_run(folder, sync_every=3)
    return folder


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"reference": "copy"}, "expected reference='lookahead'.*got 'copy'"),
        ({"objective": "kto"}, "expected the batches .* was written with.*'objective': 'dpo'.*got"),
        ({"sync_every": 2}, "expected sync_every=3.*got 2"),
        (
            {"per_device_train_batch_size": 1},
            "expected the batches that .* was written with.*'global_batch_size': 2.*got",
        ),
        ({"max_length": 33}, "expected the batches .* was written with.*'max_length': 32.*got"),
        ({"seed": 7}, "expected the batches that .* was written with.*'seed': 42.*got"),
    ],
)
def test_look_ahead_scores_of_another_run_are_refused(
    synced_every_third_step: Path, tmp_path: Path, setting: dict[str, Any], said: str
):
    other = tiny_trainer(tmp_path, **SAVING | {"sync_every": 3} | setting)
    with pytest.raises(ValueError, match=said):
        other.train(str(synced_every_third_step / "checkpoint-4"))


@pytest.mark.parametrize("reference", ["lookahead", "copy"])
def test_a_checkpoint_of_a_run_on_other_data_is_refused(tmp_path: Path, reference: str):
    run_dir = tmp_path / "run"
    saved_run(run_dir, reference=reference)
    other = tiny_trainer(run_dir, reference=reference, train_dataset=records("dpo", 10, seed=1), **SAVING)
    with pytest.raises(ValueError, match=r"expected the batches that .* was written with.*'data'"):
        other.train("auto")


def test_extending_a_finished_look_ahead_run_is_refused_before_a_step(run_dir: Path):
    longer = tiny_trainer(run_dir, **SAVING | {"max_steps": 9})
    with pytest.raises(ValueError, match=r"planned to end at step 6 .*got 9"):
        longer.train("auto")
    assert newest_complete(run_dir) == run_dir / "checkpoint-6"


def test_a_run_resumes_in_another_folder_with_its_initial_scores(tmp_path: Path):
    settings = {"eval_dataset": records("dpo", 5, seed=5), "eval_strategy": "steps", "eval_steps": 2}
    whole = saved_run(tmp_path / "whole", **settings)
    tiny_trainer(tmp_path / "moved", **SAVING | settings).train(str(tmp_path / "whole" / "checkpoint-2"))
    shutil.rmtree(tmp_path / "moved" / "checkpoint-6")
    again = tiny_trainer(tmp_path / "moved", **SAVING | settings)
    again.train("auto")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))
    assert logged(tmp_path / "moved") == [line for line in logged(tmp_path / "whole") if line["step"] > 2]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"eval_dataset": records("dpo", 5, seed=6)}, r"'data': \d+}, got {'data'"),
        ({"per_device_eval_batch_size": 2}, "{'batch_size': 3}, got {'batch_size': 2}"),
    ],
)
def test_initial_scores_of_other_data_or_settings_are_refused(tmp_path: Path, setting: dict[str, Any], said: str):
    held_out = {"eval_dataset": records("dpo", 5, seed=5)}
    saved_run(tmp_path, **held_out)
    with pytest.raises(ValueError, match=rf"settings that .*initial_eval_logp\.pt was made of, .*{said}"):
        tiny_trainer(tmp_path, **held_out | setting).train("auto")


def test_held_out_data_not_scored_by_the_initial_policy_are_refused(run_dir: Path):
    resumed = tiny_trainer(run_dir, eval_dataset=records("dpo", 4))
    with pytest.raises(
        ValueError, match=r"expected .*initial_eval_logp\.pt: evaluation compares with the initial policy"
    ):
        resumed.train("auto")
