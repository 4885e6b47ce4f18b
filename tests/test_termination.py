"""On SIGTERM a run saves at the end of the step and stops; resuming gives the uninterrupted result."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from humanline_fused.training.run.checkpoint import newest_complete
from humanline_fused.training.run.termination import Termination
from tests.tiny_model import losses, records, tiny_trainer, trained


class Scheduler(TrainerCallback):
    """Sends SIGTERM to this process during a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("reference", ["lookahead", "copy"])
def test_a_terminated_run_saves_after_its_step_and_resumes_bitwise(tmp_path: Path, reference: str):
    settings = {"reference": reference, "sync_every": 4}
    whole = trained(tmp_path / "whole", **settings)
    cut = trained(tmp_path / "cut", callbacks=[Scheduler(2)], **settings)
    assert cut.termination.stopped
    assert cut.state.global_step == 3
    assert newest_complete(tmp_path / "cut") == tmp_path / "cut" / "checkpoint-3"
    resumed = tiny_trainer(tmp_path / "cut", resume_from_checkpoint="auto", **settings)
    resumed.train()
    assert not resumed.termination.stopped
    assert losses(resumed) == losses(whole)
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))


def test_a_terminated_run_saves_even_with_save_strategy_best(tmp_path: Path):
    best = {"save_strategy": "best", "metric_for_best_model": "loss", "greater_is_better": True}
    settings = {"eval_dataset": records("dpo", 4, 5), "eval_strategy": "steps", "eval_steps": 1, **best}
    trained(tmp_path, callbacks=[Scheduler(3)], learning_rate=1e-2, **settings)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-4"


def test_the_previous_sigterm_handler_is_restored_also_after_a_failed_run(tmp_path: Path):
    before = signal.getsignal(signal.SIGTERM)

    class Failing(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert signal.getsignal(signal.SIGTERM) != before
            raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError, match="no such luck"):
        trained(tmp_path, callbacks=[Failing()])
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_a_run_trains_without_a_handler():
    entered: list[bool] = []

    def run() -> None:
        with Termination() as termination:
            entered.append(termination.stopped)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered == [False]
