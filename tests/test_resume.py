"""The checkpoint that a run resumes from: which one, why not a newer one, and where in an epoch it goes on."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.run.checkpoint import describe_resume, faults, resolve_resume
from humanline_fused.training.run.manifest import seal
from humanline_fused.training.run.settings_file import SETTINGS, describe_changes
from tests.tiny_model import losses, records, tiny_model, tiny_trainer

SAVING = {"save_strategy": "steps", "save_steps": 2}


def saved_run(output_dir: Path, **settings: object) -> HumanlineTrainer:
    trainer = tiny_trainer(output_dir, **SAVING | settings)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    saved_run(folder)
    return folder


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """Folder of a finished run with checkpoints at steps 2, 4 and 6."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize(("objective", "steps"), [("dpo", (1, 2, 3, 4, 5)), ("kto", (2, 3)), ("grpo", (1, 4))])
def test_a_run_resumes_bitwise_at_any_step_of_an_epoch_that_is_no_multiple_of_the_batch(
    tmp_path: Path, objective: str, steps: tuple[int, ...]
):
    """Seven examples, two a step: an epoch has three steps and leaves out one example, another one each time."""
    rows = records(objective, 6 if objective == "grpo" else 7)
    if objective == "grpo":
        rows[1] = {"prompt": "w1", "completions": [" w2", " w3 w4", " w5"], "rewards": [0.0, 1.0, 3.0]}
    settings = {"objective": objective, "train_dataset": rows, "save_steps": 1}
    whole = saved_run(tmp_path / "whole", **settings)
    for step in steps:
        folder = tmp_path / str(step) / f"checkpoint-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder)
        resumed = tiny_trainer(folder.parent, **SAVING | settings)
        resumed.train("auto")
        assert losses(resumed) == losses(whole)
        pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
        assert all(torch.equal(mine, other) for mine, other in pairs)


def test_settings_that_changed_are_listed_and_the_optimizer_keeps_its_own(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.rmtree(run_dir / "checkpoint-6")
    trainer = tiny_trainer(run_dir, **SAVING, learning_rate=0.1, max_grad_norm=0.5)
    trainer.train("auto")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("other settings"))
    assert line == (
        "other settings than before: max_grad_norm 1.0 → 0.5; without effect, because the checkpoint's optimizer has "
        "its own: learning_rate 0.003 → 0.1"
    )
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {0.003}  # pyright: ignore


def test_another_scale_of_the_adapter_is_another_model_and_refused(tmp_path: Path):
    pytest.importorskip("peft")
    saved_run(tmp_path, lora_r=2)
    shutil.rmtree(tmp_path / "checkpoint-6")
    with pytest.raises(ValueError, match=r"expected lora_alpha=4, as in .*checkpoint-4, got 64"):
        tiny_trainer(tmp_path, **SAVING, lora_r=2, lora_alpha=64.0).train("auto")
    identity = tmp_path / "checkpoint-4" / "run.json"
    identity.write_text(json.dumps({k: v for k, v in json.loads(identity.read_text()).items() if k != "adapter"}))
    seal(identity.parent)  # as an earlier version wrote it
    tiny_trainer(tmp_path, **SAVING, lora_r=2, lora_alpha=64.0).train("auto")


@pytest.mark.parametrize("optim", ["sgd", "adafactor"])
def test_another_kind_of_optimizer_is_refused_before_its_first_step(run_dir: Path, optim: str):
    shutil.rmtree(run_dir / "checkpoint-6")
    with pytest.raises(ValueError, match=r"expected the kind of optimizer that .*checkpoint-4 was written with"):
        tiny_trainer(run_dir, **SAVING, optim=optim).train("auto")


def test_settings_that_did_not_change_or_are_not_known_are_no_line(run_dir: Path, tmp_path: Path):
    config = tiny_trainer(tmp_path / "other", **SAVING).args
    assert describe_changes(config, run_dir) == describe_changes(config, tmp_path) == []
    (run_dir / SETTINGS).write_text("{")
    assert describe_changes(config, run_dir) == []


def as_an_earlier_version_wrote_it(run_dir: Path) -> None:
    """Remove from a run what tells the groups of its data."""
    for file in run_dir.glob("checkpoint-*/run.json"):
        identity = json.loads(file.read_text())
        identity["batches"].pop("groups", None)
        file.write_text(json.dumps(identity))
        seal(file.parent)
    for file in run_dir.glob("tokens/*/rows.npy"):
        file.unlink()


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_checkpoint_from_before_groups_stood_together_resumes_where_the_order_is_the_same(
    tmp_path: Path, objective: str
):
    whole = saved_run(tmp_path / "whole", objective=objective)
    shutil.copytree(tmp_path / "whole", tmp_path / "earlier", ignore=shutil.ignore_patterns("checkpoint-[46]"))
    as_an_earlier_version_wrote_it(tmp_path / "earlier")
    resumed = tiny_trainer(tmp_path / "earlier", **SAVING, objective=objective)
    resumed.train("auto")
    assert losses(resumed) == losses(whole)


def test_a_checkpoint_from_before_groups_stood_together_is_refused_with_the_reason(tmp_path: Path):
    saved_run(tmp_path, objective="grpo")
    as_an_earlier_version_wrote_it(tmp_path)
    for tokens in (tmp_path / "tokens").iterdir():
        shutil.rmtree(tokens)
    with pytest.raises(ValueError, match=r"keeps the completions of a prompt together, got .*checkpoint-6, of an earl"):
        tiny_trainer(tmp_path, **SAVING, objective="grpo").train("auto")


def test_a_run_whose_groups_are_others_does_not_resume(tmp_path: Path):
    """The tokens, weights and rewards are the same, but not the coming batches."""
    group = {"prompt": "w1", "completions": [" w2", " w3", " w2", " w3"], "rewards": [0.0, 1.0, 0.0, 1.0]}
    halves = [{name: group[name][:2] for name in ("completions", "rewards")} | {"prompt": "w1"}] * 2
    saved_run(tmp_path / "run", objective="grpo", train_dataset=[group])
    with pytest.raises(ValueError, match=r"expected the batches that .*'groups': \d+.*got \{'groups': \d+\}"):
        tiny_trainer(tmp_path / "other", objective="grpo", train_dataset=halves).train(
            str(tmp_path / "run" / "checkpoint-2")
        )


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


WITHOUT_OPTIMIZER = (
    r"checkpoint-6, checkpoint-4, checkpoint-2: saved without the optimizer \(save_only_model\)\. To start"
)


@pytest.fixture(scope="module")
def only_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run whose checkpoints have no optimizer."""
    folder = tmp_path_factory.mktemp("only_models")
    saved_run(folder, save_only_model=True)
    return folder


@pytest.mark.parametrize("resume", ["auto", True])
def test_checkpoints_that_cannot_be_resumed_from_are_no_reason_to_start_over(only_models: Path, resume: str | bool):
    before = everything_in(only_models)
    with pytest.raises(ValueError, match=f"={resume!r}: expected a complete checkpoint .*got {WITHOUT_OPTIMIZER}"):
        tiny_trainer(only_models, **SAVING).train(resume)
    assert everything_in(only_models) == before


def test_every_checkpoint_is_listed_with_its_own_reason(run_dir: Path):
    (run_dir / "checkpoint-2" / "files.json").unlink()
    (run_dir / "checkpoint-4" / "files.json").write_text("{")
    (run_dir / "checkpoint-6" / "optimizer.pt").unlink()
    said = (
        r"got checkpoint-6: optimizer.pt is missing; checkpoint-4, checkpoint-2: files.json is missing or unreadable\."
    )
    with pytest.raises(ValueError, match=said):
        resolve_resume(run_dir, "auto")


def test_a_fresh_start_does_not_overwrite_incomplete_checkpoints(only_models: Path):
    before = everything_in(only_models)
    with pytest.raises(ValueError, match=f"checkpoints of an earlier run, none of which .*: {WITHOUT_OPTIMIZER}"):
        saved_run(only_models)
    assert everything_in(only_models) == before


def test_a_file_named_as_a_checkpoint_is_none(tmp_path: Path):
    (tmp_path / "checkpoint-3").write_text("notes")
    assert resolve_resume(tmp_path, "auto") is resolve_resume(tmp_path, None) is None


@pytest.mark.parametrize("resume", ["auto", True])
def test_a_resumed_run_says_which_checkpoint_it_took_and_why_not_the_newest(
    run_dir: Path, resume: str | bool, capsys: pytest.CaptureFixture[str]
):
    (run_dir / "checkpoint-6" / "optimizer.pt").write_bytes(b"")
    capsys.readouterr()
    tiny_trainer(run_dir, **SAVING).train(resume)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resumed")]
    name, files = run_dir / "checkpoint-4", json.loads((run_dir / "checkpoint-4" / "files.json").read_text())
    reason = f"checkpoint-6: optimizer.pt has 0 bytes instead of {files['files']['optimizer.pt']['bytes']}"
    assert line == f"resumed from {name}, step 4 (not from {reason})"
    assert faults(run_dir / "checkpoint-6") == []


def test_a_run_resumed_from_the_newest_checkpoint_names_it_alone(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    tiny_trainer(run_dir, **SAVING).train("auto")
    assert f"resumed from {run_dir / 'checkpoint-6'}, step 6" in capsys.readouterr().out.splitlines()


def test_an_older_checkpoint_taken_for_another_folder_gives_no_reason_against_complete_ones(run_dir: Path):
    shutil.copytree(run_dir / "checkpoint-2", run_dir / "elsewhere")
    assert describe_resume(run_dir / "checkpoint-2") == f"resumed from {run_dir / 'checkpoint-2'}, step 2"
    assert describe_resume(run_dir / "elsewhere") == f"resumed from {run_dir / 'elsewhere'}, step 2"


def test_no_warning_says_that_a_tied_weight_is_missing_and_others_are_kept(tmp_path: Path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(transformers.trainer.logger, "warning", said.append)
    settings = {"max_steps": 2, "save_steps": 1, "train_dataset": records("dpo", 2)}
    for resume in (None, "auto"):
        tied = tiny_trainer(tmp_path, model=tiny_model(tie_word_embeddings=True), **SAVING | settings)
        tied.train(resume)
        shutil.rmtree(tmp_path / "checkpoint-2")
    assert said == []
    tied._issue_warnings_after_load(SimpleNamespace(missing_keys=["lm_head.weight", "absent"], unexpected_keys=["new"]))
    assert [text.split(": ")[1] for text in said] == ["['absent'].", "['new']."]
