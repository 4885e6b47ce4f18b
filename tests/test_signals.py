"""A signal at any phase leaves a run whose resumed end is the uninterrupted one's; a finished run adds nothing."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from transformers import set_seed

from humanline_fused.reference import CopyReference
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.online.rollout import Rounds
from humanline_fused.training.run import checkpoint, termination
from humanline_fused.training.run.metrics_log import TIMES
from humanline_fused.training.run.whole_run import train_and_export
from humanline_fused.training.scoring import Scorer
from tests.tiny_model import records, tiny_config, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("default_signals")

COMMON: dict[str, Any] = {
    "max_steps": 6,
    "learning_rate": 3e-2,
    "logging_steps": 3,
    "sync_every": 2,
}
BEST = {"eval_dataset": records("dpo", 3, 5), "load_best_model_at_end": True, "metric_for_best_model": "loss"}
CONFIGS: dict[str, dict[str, Any]] = {
    # An epoch has four steps. The best evaluation is that of a step without a checkpoint.
    "steps": {
        **COMMON,
        **BEST,
        "objective": "dpo",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_on_start": True,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 2,
    },
    "epochs": {
        **COMMON,
        **BEST,
        "objective": "dpo",
        "reference": "copy",
        "clamp": False,
        "disable_dropout": False,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
    },
    "rounds": {
        **COMMON,
        "objective": "grpo",
        "reference": "copy",
        "rollout_every": 2,
        "num_generations": 2,
        "max_completion_length": 4,
        "scale_rewards": "none",
        "per_device_train_batch_size": 4,
        "logging_steps": 5,
        "save_strategy": "steps",
        "save_steps": 3,
    },
}


def length(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


def made(folder: Path, name: str, **changes: Any) -> HumanlineTrainer:
    """Return a trainer; without humanline with dropout, so that torch's own random numbers count."""
    settings = {**CONFIGS[name], **changes}
    held_out = settings.pop("eval_dataset", None)
    online = "rollout_every" in settings
    data = [{"prompt": f"w{i}"} for i in range(6)] if online else settings.pop("train_dataset", records("dpo", 8))
    args = tiny_config(folder, **settings)
    set_seed(1)
    model = tiny_model(attention_dropout=0.1)
    given: dict[str, Any] = {"reward_function": length} if online else {}
    return HumanlineTrainer(model, args, data, held_out, processing_class=tiny_tokenizer(), **given)


def lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file without what a clock measured."""
    text = file.read_text() if file.exists() else ""
    return [{k: v for k, v in json.loads(line).items() if not TIMES.search(k)} for line in text.splitlines()]


def end(folder: Path) -> dict[str, Any]:
    """Return what a run leaves: exports, log lines, samples, checkpoints, and bits and best model of the newest one."""
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".safetensors", ".json")}
    files.pop("settings.json")
    left: dict[str, Any] = {name: lines(folder / f"{name}.jsonl") for name in ("metrics", "completions")}
    left |= {"checkpoints": [saved.name for saved in checkpoint.checkpoints(folder)]}
    if newest := checkpoint.newest_complete(folder):
        state = json.loads((newest / "trainer_state.json").read_text())
        best = state["best_model_checkpoint"]
        left |= {"best": (best and Path(best).name, state["best_metric"], state["best_global_step"])}
        left |= {"log": [{k: v for k, v in line.items() if not TIMES.search(k)} for line in state["log_history"]]}
        files |= {f"newest {file.name}": file.read_bytes() for file in newest.glob("*.safetensors")}
        files |= {f"newest {name}": (newest / name).read_bytes() for name in ("optimizer.pt", "rng_state.pth")}
    return left | files


@pytest.fixture(scope="module", params=CONFIGS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return a configuration and the folder of its uninterrupted run."""
    folder = tmp_path_factory.mktemp(request.param)
    train_and_export(made(folder, request.param))
    return request.param, folder


STOPS: dict[str, list[tuple[Any, str, int, int]]] = {
    # the phases in which a signal comes, one in each part of a run: owner and name of what is called, at which of its
    # calls, and the step at which the run then stops
    "steps": [
        (HumanlineTrainer, "before_training", 1, 0),
        (Scorer, "score", 3, 1),  # look-ahead
        (HumanlineTrainer, "compute_loss", 1, 2),
        (accelerate.Accelerator, "backward", 1, 3),
        (HumanlineTrainer, "evaluation_loop", 1, 4),  # before the checkpoint of the same step
        (torch.optim.AdamW, "step", 1, 5),
        (torch, "save", 1, 6),
    ],
    "epochs": [
        (HumanlineTrainer, "compute_loss", 2, 2),
        (HumanlineTrainer, "evaluation_loop", 1, 4),  # of the end of an epoch
        (CopyReference, "before_optimizer_step", 1, 5),
        (checkpoint, "publish", 1, 6),
    ],
    "rounds": [(Rounds, "_draw", 2, 3), (Rounds, "_score", 1, 5), (HumanlineTrainer, "compute_loss", 1, 6)],
}


def signalled(
    patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, number: int = signal.SIGTERM
) -> Callable[[], int]:
    """Send this process a signal at the beginning of a call; return what counts the calls."""
    function, calls = getattr(owner, name), [0]

    def with_signal(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    patch.setattr(owner, name, with_signal)
    return lambda: calls[0]


def test_sigterm_at_any_phase_leaves_a_run_that_resumes_bitwise(whole: tuple[str, Path], tmp_path: Path):
    name, folder = whole
    for owner, phase, call, step in STOPS[name]:
        with pytest.MonkeyPatch.context() as patch:
            calls = signalled(patch, owner, phase, call)
            cut = made(tmp_path, name, resume_from_checkpoint="auto")
            train_and_export(cut)
        assert calls() >= call, phase
        assert (cut.termination.stopped, cut.state.global_step) == (signal.SIGTERM, step), phase
        known = lines(tmp_path / "metrics.jsonl")
        assert known == lines(folder / "metrics.jsonl")[: len(known)], phase
    train_and_export(made(tmp_path, name, resume_from_checkpoint="auto"))
    assert end(tmp_path) == end(folder)


@pytest.mark.parametrize("phase", ["_load_best_model", "evaluation_loop", "save_model"])
def test_a_signal_after_the_last_step_does_not_keep_a_run_from_its_end(tmp_path: Path, phase: str):
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 2}
    settings |= {"eval_on_start": False, "train_dataset": records("dpo", 4)}
    with pytest.MonkeyPatch.context() as patch:
        calls = signalled(patch, HumanlineTrainer, phase, {"evaluation_loop": 2, "save_model": 2}.get(phase, 1))
        train_and_export(made(tmp_path, "steps", **settings))
    assert calls() == {"evaluation_loop": 2, "save_model": 2}.get(phase, 1)
    steps = [line["step"] for line in lines(tmp_path / "metrics.jsonl")]
    assert steps == [1, 2, 2, 2]
    assert (tmp_path / "model.safetensors").is_file()


def test_a_finished_run_that_is_run_again_adds_nothing(whole: tuple[str, Path], tmp_path: Path):
    name, folder = whole
    shutil.copytree(folder, tmp_path / "again")
    before = (tmp_path / "again" / "metrics.jsonl").read_bytes()
    train_and_export(made(tmp_path / "again", name, resume_from_checkpoint="auto"))
    assert end(tmp_path / "again") == end(folder)
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == before


def test_a_kill_between_the_last_step_of_an_epoch_and_its_end_loses_nothing(tmp_path: Path):
    """The checkpoint of step 4 is written before the epoch's log line and evaluation, the kill comes after these."""
    settings = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": False}
    train_and_export(made(tmp_path / "whole", "epochs", **settings))

    class Killed(BaseException):
        pass

    def killed(self: HumanlineTrainer, *args: Any, **kwargs: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HumanlineTrainer, "_determine_best_metric", killed)
        with pytest.raises(Killed):
            train_and_export(made(tmp_path / "cut", "epochs", **settings))
    train_and_export(made(tmp_path / "cut", "epochs", **settings, resume_from_checkpoint="auto"))
    assert end(tmp_path / "cut") == end(tmp_path / "whole")


# Which signals


AUTO = "--resume_from_checkpoint auto"


def test_sighup_saves_also_where_no_checkpoint_is_planned(tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        signalled(patch, torch.optim.AdamW, "step", 1, signal.SIGHUP)
        said = train_and_export(made(tmp_path, "rounds", save_strategy="no"))
    saved = checkpoint.newest_complete(tmp_path)
    assert saved == tmp_path / "checkpoint-1"
    assert said == f"SIGHUP: stopped at step 1, saved {saved}: {AUTO}"


def test_ctrl_c_saves_with_the_optimizer_and_ends_the_program(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.MonkeyPatch.context() as patch:
        signalled(patch, torch.optim.AdamW, "step", 2, signal.SIGINT)
        trainer = made(tmp_path, "rounds", save_only_model=True, save_steps=1)
        with pytest.raises(KeyboardInterrupt) as ended:
            trainer.train()
    assert str(ended.value) == f"SIGINT: stopped at step 2, saved {tmp_path / 'checkpoint-2'}: {AUTO}"
    assert termination.SAID.decode() in capfd.readouterr().err
    assert trainer.args.save_only_model
