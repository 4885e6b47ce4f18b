"""SIGTERM, SIGINT and SIGHUP are requests to end a run; what else they do stays as it was."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from humanline_fused.interruption import interruptible
from humanline_fused.training.run import termination
from humanline_fused.training.run.checkpoint import newest_complete
from humanline_fused.training.run.termination import Termination
from tests.tiny_model import records, trained

pytestmark = pytest.mark.usefixtures("default_signals")


class Scheduler(TrainerCallback):
    """Sends SIGTERM to this process during a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_terminated_run_saves_even_with_save_strategy_best(tmp_path: Path):
    best = {"save_strategy": "best", "metric_for_best_model": "loss", "greater_is_better": True}
    settings = {"eval_dataset": records("dpo", 4, 5), "eval_strategy": "steps", "eval_steps": 1, **best}
    trained(tmp_path, callbacks=[Scheduler(3)], learning_rate=1e-2, **settings)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-4"


def test_the_previous_handlers_are_restored_also_after_a_failed_run(tmp_path: Path):
    before = [signal.getsignal(one) for one in termination.SIGNALS]

    class Failing(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert not {signal.getsignal(one) for one in termination.SIGNALS} & set(before)
            raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError, match="no such luck"):
        trained(tmp_path, callbacks=[Failing()])
    assert [signal.getsignal(one) for one in termination.SIGNALS] == before


def test_a_second_ctrl_c_interrupts_at_once_but_not_one_within_a_second(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(termination, "SAID", b"")
    now = [0.0]
    monkeypatch.setattr(termination.time, "monotonic", lambda: now[0])
    with Termination() as ending:
        signal.raise_signal(signal.SIGINT)
        now[0] = termination.AGAIN / 2  # a launcher's, for the same Ctrl-C
        signal.raise_signal(signal.SIGINT)
        assert ending.received == signal.SIGINT
        now[0] = termination.AGAIN
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def interrupted_while_cleaning_up() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("trying to pop from empty mode stack") from None


def test_ctrl_c_that_a_library_turns_into_another_error_is_ctrl_c_again():
    with pytest.raises(KeyboardInterrupt), interruptible(), interruptible():
        interrupted_while_cleaning_up()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_without_ctrl_c_stays_what_it_is():
    with pytest.raises(RuntimeError, match="no such luck"), interruptible():
        raise RuntimeError("no such luck")


def test_a_second_ctrl_c_is_heard_by_the_handler_that_was_there_before(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(termination, "SAID", b"")
    monkeypatch.setattr(termination, "AGAIN", 0.0)
    with pytest.raises(KeyboardInterrupt), interruptible(), Termination():
        interrupted_while_cleaning_up()


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Termination() as ending:
            signal.raise_signal(signal.SIGHUP)
            assert ending.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_that_is_not_pythons_stays(monkeypatch: pytest.MonkeyPatch):
    """Of a program in C that runs Python: it could not be restored."""
    get = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda one: None if one == signal.SIGHUP else get(one))
    before = [get(one) for one in termination.SIGNALS]
    with Termination():
        changed = {one for one, handler in zip(termination.SIGNALS, before, strict=True) if get(one) != handler}
        assert changed == {signal.SIGTERM, signal.SIGINT}
    assert [get(one) for one in termination.SIGNALS] == before


def test_a_process_that_a_reward_function_forks_can_be_terminated():
    with Termination() as ending:
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert ending.received is None


def test_the_handlers_are_those_of_the_outer_context_until_its_end():
    before = [signal.getsignal(one) for one in termination.SIGNALS]
    with Termination() as ending:
        with ending:
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) not in before
        assert ending.received == signal.SIGTERM
    assert [signal.getsignal(one) for one in termination.SIGNALS] == before


def test_outside_the_main_thread_a_run_trains_without_a_handler():
    entered: list[Any] = []

    def enter() -> None:
        with Termination() as ending:
            entered.append(ending.stopped)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [None]
