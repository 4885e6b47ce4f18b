"""SIGTERM handling: save at the end of the step, then stop."""

import signal
import threading
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback


class Termination(TrainerCallback):
    """Context manager and callback: SIGTERM on any rank stops the run on all ranks after the step, with a checkpoint.

    Schedulers send SIGTERM before they take a machine.

    Attributes:
        stopped: whether SIGTERM stopped the run.

    >>> with Termination() as termination:
    ...     termination.stopped
    False
    """

    def __init__(self) -> None:
        self.received = self.stopped = False
        self._group: Any = None
        self._before: Any = None

    def __enter__(self) -> "Termination":
        self.received = self.stopped = False
        if threading.current_thread() is threading.main_thread():  # Python allows only this thread to set a handler
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1 and self._group is None:
            # gloo communicates between hosts without waiting for a GPU.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=args.ddp_timeout))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stopped = self.received
        if self._group is not None:
            anyone = torch.tensor(int(self.received))
            dist.all_reduce(anyone, dist.ReduceOp.MAX, group=self._group)
            self.stopped = bool(anyone)
        if self.stopped:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # it takes time and, with save_strategy="best", decides whether to save
