"""Which checkpoints stay: as Trainer keeps them, whatever ends the run; and the best model is what was saved."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.run import checkpoint
from humanline_fused.training.run.checkpoint import IDENTITY, checkpoints
from humanline_fused.training.run.manifest import MANIFEST, seal
from humanline_fused.training.run.retention import tidy
from tests.tiny_model import records, tiny_config, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("default_signals")


def names(folder: Path) -> list[str]:
    return [saved.name for saved in checkpoints(folder)]


def folders(run: Path, unplanned: tuple[int, ...] = ()) -> Path:
    """Make a run's folder with checkpoints of steps 2, 4, 6, 8, 10; those in ``unplanned`` are marked."""
    for step in (2, 4, 6, 8, 10):
        saved = run / f"checkpoint-{step}"
        saved.mkdir(parents=True)
        (saved / IDENTITY).write_text(json.dumps({"unplanned": True} if step in unplanned else {}))
    return run


@pytest.mark.parametrize("best", [None, 2, 8, 10])
@pytest.mark.parametrize("limit", [None, 0, 1, 2, 3, 5, 9])
def test_planned_checkpoints_are_kept_as_trainer_keeps_them(tmp_path: Path, limit: int | None, best: int | None):
    ours, trainers = folders(tmp_path / "ours"), folders(tmp_path / "trainers")
    at = [str(run / f"checkpoint-{best}") if best else None for run in (ours, trainers)]
    tidy(ours / "checkpoint-10", limit, at[0])
    rotate_checkpoints(str(trainers), limit, at[1])
    assert names(ours) == names(trainers)


def test_a_checkpoint_of_a_stop_after_the_newest_one_stays(tmp_path: Path):
    """As of a run that was continued from an earlier checkpoint than its last."""
    run = folders(tmp_path, unplanned=(10,))
    tidy(run / "checkpoint-6", 2, None)
    assert names(run) == ["checkpoint-10", "checkpoint-8", "checkpoint-6"]


def test_an_unplanned_checkpoint_displaces_none_and_goes_with_the_next_one(tmp_path: Path):
    run = folders(tmp_path / "stopped", unplanned=(10,))
    tidy(run / "checkpoint-10", 2, None)
    assert len(names(run)) == 5
    run = folders(tmp_path / "resumed", unplanned=(6, 8))
    tidy(run / "checkpoint-10", 2, None)
    assert names(run) == ["checkpoint-10", "checkpoint-4"]
    run = folders(tmp_path / "stopped again", unplanned=(8, 10))
    tidy(run / "checkpoint-10", None, None)
    assert names(run) == ["checkpoint-10", "checkpoint-6", "checkpoint-4", "checkpoint-2"]


# Runs of six steps with a checkpoint every two, of which those of steps 2 and 6 are kept: at this learning rate the
# best model is that of step 2.

SETTINGS: dict[str, Any] = {
    "objective": "dpo",
    "reference": "copy",
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "learning_rate": 1.0,
}


class StopAt(TrainerCallback):
    """Sends SIGTERM at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)


def made(folder: Path, **changes: Any) -> HumanlineTrainer:
    args = tiny_config(folder, **SETTINGS | changes)
    model, data, held_out = tiny_model(num_hidden_layers=2), records("dpo", 8), records("dpo", 3, 5)
    return HumanlineTrainer(model, args, data, held_out, processing_class=tiny_tokenizer())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run whose checkpoint of step 4 was removed by the limit; it is kept in ``removed``."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = made(folder / "run")
    kept = checkpoint.publish

    def publish(staged: Path, final: Path) -> None:
        kept(staged, final)
        shutil.copytree(final, folder / "removed" / final.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "publish", publish)
        trainer.train()
    assert names(folder / "run") == ["checkpoint-6", "checkpoint-2"]
    assert Path(trainer.state.best_model_checkpoint or "").name == "checkpoint-2"
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "run", tmp_path / "run"))


def test_a_run_that_was_killed_before_it_removed_a_checkpoint_removes_it_when_resumed(whole: Path, run: Path):
    shutil.copytree(whole / "removed" / "checkpoint-4", run / "checkpoint-4")
    made(run).train("auto")
    assert names(run) == ["checkpoint-6", "checkpoint-2"]


def test_a_damaged_newer_checkpoint_removes_none_when_a_run_is_resumed_from_the_one_before(whole: Path, run: Path):
    shutil.copytree(whole / "removed" / "checkpoint-4", run / "checkpoint-4")
    shutil.copytree(run / "checkpoint-4", run / "checkpoint-3")
    (run / "checkpoint-6" / "optimizer.pt").write_bytes(b"")
    made(run, max_steps=4).train("auto")
    assert names(run) == ["checkpoint-6", "checkpoint-4", "checkpoint-3", "checkpoint-2"]


def test_a_run_that_was_stopped_behind_its_best_evaluation_ends_as_the_whole_one(tmp_path: Path):
    """The best evaluation, at step 2, has no planned checkpoint; that of the stop there is none of the best model's."""
    changes = {"save_steps": 4, "max_steps": 8}
    whole = made(tmp_path / "whole", **changes)
    whole.train()
    assert whole.state.best_global_step == 2
    stopped = made(tmp_path / "run", **changes)
    stopped.add_callback(StopAt(2))
    stopped.train()
    assert names(tmp_path / "run") == ["checkpoint-2"]
    resumed = made(tmp_path / "run", **changes)
    resumed.train("auto")
    assert resumed.state.best_model_checkpoint is whole.state.best_model_checkpoint is None
    assert names(tmp_path / "run") == names(tmp_path / "whole") == ["checkpoint-8", "checkpoint-4"]


def test_damage_to_the_best_models_optimizer_does_not_matter(whole: Path, run: Path):
    (run / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    made(run).train("auto")


def test_a_damaged_best_model_is_refused_before_a_run_continues(whole: Path, run: Path):
    shutil.rmtree(run / "checkpoint-6")
    shutil.copytree(whole / "removed" / "checkpoint-4", run / "checkpoint-4")
    weights = run / "checkpoint-2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    said = f"expected the best model so far, but {run / 'checkpoint-2'}/model.safetensors is damaged"
    with pytest.raises(ValueError, match=re.escape(said)):
        made(run).train("auto")
    assert names(run) == ["checkpoint-4", "checkpoint-2"]
    without = made(run, load_best_model_at_end=False)
    without.train("auto")
    assert without.state.global_step == 6


@pytest.mark.parametrize("saved", [True, False])
def test_a_best_model_damaged_during_the_run_is_not_exported(tmp_path: Path, saved: bool):
    trainer = made(tmp_path, save_total_limit=None, **({} if saved else {"max_steps": 5}))
    ended = trainer._finalize_training

    def damaged(*args: Any, **kwargs: Any) -> Any:
        (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"")
        return ended(*args, **kwargs)

    trainer._finalize_training = damaged
    step = 6 if saved else 5
    said = f"/model.safetensors has 0 bytes .* The run up to step {step} is kept: resume from .*checkpoint-{step}"
    with pytest.raises(ValueError, match=said):
        trainer.train()


def test_the_best_model_is_found_in_a_folder_that_was_moved(whole: Path, tmp_path: Path):
    moved = Path(shutil.copytree(whole / "run", tmp_path / "moved"))
    shutil.rmtree(moved / "checkpoint-6")
    shutil.copytree(whole / "removed" / "checkpoint-4", moved / "checkpoint-4")
    for saved in checkpoints(moved):  # as if the first folder were gone
        state = (saved / "trainer_state.json").read_text().replace(str(whole / "run"), str(whole / "gone"))
        (saved / "trainer_state.json").write_text(state)
        (saved / MANIFEST).unlink()
        seal(saved)
    trainer = made(moved)
    trainer.train("auto")
    assert trainer.state.best_model_checkpoint == str(moved / "checkpoint-2")
