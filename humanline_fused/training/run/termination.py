"""An early end of a run, on all ranks after the same step: on a signal, or on an error that one rank has."""

import os
import signal
import threading
import time
from contextlib import suppress
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from transformers import TrainerCallback

SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
"""SIGTERM is sent by schedulers before they take a machine, SIGINT by Ctrl-C, SIGHUP when a terminal is closed."""

AGAIN = 1.0
"""Seconds after which another SIGINT is a second Ctrl-C. Launchers send the first one once more."""

FAILED = 1000
"""Number that stands for an error among the numbers of signals."""

SAID = b"SIGINT: the run ends at the next step from which it can resume. A second Ctrl-C ends it at once\n"


class Termination(TrainerCallback):
    """Context manager and callback: a signal to any rank ends the run on all ranks before the next step.

    What is due at a step (log line, evaluation, checkpoint, end of the epoch) is done first, as without the signal. A
    second Ctrl-C raises KeyboardInterrupt at once. A signal that is ignored, as SIGHUP under ``nohup``, stays ignored,
    and a handler that is not Python's, for which ``signal.getsignal`` returns None, stays too.
    The context may be entered again inside itself.

    Attributes:
        received: the signal that this rank received, or None.
        stopped: the signal that ended the run, which any rank may have received, or None.

    >>> with Termination() as termination:
    ...     bool(termination.stopped)
    False
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.stopped: signal.Signals | None = None
        self._failure: Exception | None = None
        self._group: Any = None
        self._in_loop = False
        self._entered = 0
        self._process = os.getpid()
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._epoch_began: int | None = None

    def __enter__(self) -> "Termination":
        self._entered += 1
        if self._entered > 1:
            return self
        self.received = self.stopped = self._failure = None
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():  # Python allows only this thread to set a handler
            heard = [one for one in SIGNALS if signal.getsignal(one) not in (signal.SIG_IGN, None)]
            self._before = {one: signal.signal(one, self._receive) for one in heard}
        return self

    def __exit__(self, *exception: Any) -> None:
        self._entered -= 1
        if not self._entered:
            for one, handler in self._before.items():
                signal.signal(one, handler)
            self._before, self._in_loop = {}, False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that a reward function forked
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif number != signal.SIGINT:
            self.received = signal.Signals(number)
        elif self.received != signal.SIGINT:
            self.received, self._since = signal.SIGINT, time.monotonic()
            with suppress(OSError):
                os.write(2, SAID)  # print is not reentrant
        elif time.monotonic() - self._since >= AGAIN:
            if callable(before := self._before[signal.SIGINT]):
                before(number, frame)
            raise KeyboardInterrupt

    def fail(self, error: Exception) -> None:
        """Raise ``error``; in the loop of several ranks :meth:`requested` raises it on all of them."""
        if self._group is None or not self._in_loop:
            raise error
        self._failure = self._failure or error

    def requested(self) -> bool:
        """Return whether a signal to any rank ends the run now. Collective.

        Raises:
            Exception: the error of :meth:`fail`, on every rank.
        """
        number = FAILED if self._failure else int(self.received or 0)
        if self._group is not None:
            highest = torch.tensor(number)
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._group)
            number = int(highest)
        if number == FAILED:
            raise next(error for error in gather_object([self._failure]) if error)
        self.stopped = signal.Signals(number) if number else None
        return bool(number)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._in_loop, self._epoch_began = True, None
        if args.world_size > 1 and self._group is None:
            # gloo communicates between hosts without waiting for a GPU.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=args.ddp_timeout))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._epoch_began = state.global_step

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Trainer calls it when the loop is left in the middle of an epoch, and for a finished run that is resumed.
        if self.stopped or state.global_step == self._epoch_began:
            control.should_log = control.should_evaluate = control.should_save = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._in_loop = False
