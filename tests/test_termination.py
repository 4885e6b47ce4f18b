"""SIGTERM saves at the end of the step and ends the run; what it saved continues to the same end."""

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
    """Sends SIGTERM to this process while a step is computed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("reference", ["lookahead", "copy"])
def test_a_terminated_run_saves_after_its_step_and_continues_bitwise_as_if_it_had_not_been(
    tmp_path: Path, reference: str
):
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


def test_a_terminated_run_saves_also_where_an_evaluation_would_have_to_find_it_better(tmp_path: Path):
    best = {"save_strategy": "best", "metric_for_best_model": "loss", "greater_is_better": True}
    settings = {"eval_dataset": records("dpo", 4, 5), "eval_strategy": "steps", "eval_steps": 1, **best}
    trained(tmp_path, callbacks=[Scheduler(3)], learning_rate=1e-2, **settings)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-4"


def test_after_the_run_sigterm_does_what_it_did_before_also_when_the_run_failed(tmp_path: Path):
    before = signal.getsignal(signal.SIGTERM)

    class Failing(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert signal.getsignal(signal.SIGTERM) != before
            raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError, match="no such luck"):
        trained(tmp_path, callbacks=[Failing()])
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_than_the_first_a_run_trains_without_a_handler():
    entered: list[bool] = []

    def run() -> None:
        with Termination() as termination:
            entered.append(termination.stopped)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered == [False]
