"""Cumulative seconds of training, generation and reward."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

ROLLOUTS = ("generation", "reward")
"""Intervals that only online training has."""


class Clock:
    """Counts cumulative seconds by kind. Time outside :meth:`spent_on` counts as training.

    Args:
        device: synchronised at the start and end of an interval, so that queued work counts in the right one.

    >>> clock = Clock(torch.device("cpu"))
    >>> clock.start()
    >>> with clock.spent_on("generation"):
    ...     pass
    >>> list(clock.seconds())
    ['time/training', 'time/generation', 'time/reward']
    """

    now = staticmethod(time.monotonic)
    """Seconds on the clock that is read; a subclass may read another one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        """Reset to 0."""
        self.spent: dict[str, float] = dict.fromkeys(ROLLOUTS, 0.0)
        self.elsewhere = 0.0  # seconds in spent_on since `began`
        self.training_before = 0.0
        self.stopped: float | None = None  # start of the current spent_on, if any
        self.began = self.now()

    @contextmanager
    def spent_on(self, what: str) -> Iterator[None]:
        """Count the enclosed time as ``what``, one of :data:`ROLLOUTS`; any other name excludes it from all counts."""
        self._wait()
        entered = self.stopped = self.now()
        try:
            yield
        finally:
            self._wait()
            passed = self.now() - entered
            self.stopped = None
            self.elsewhere += passed
            if what in self.spent:
                self.spent[what] += passed

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def seconds(self) -> dict[str, float]:
        """Return ``time/training``, ``time/generation`` and ``time/reward`` so far, in seconds."""
        now = self.now() if self.stopped is None else self.stopped
        training = self.training_before + now - self.began - self.elsewhere
        return {f"time/{what}": round(passed, 4) for what, passed in ({"training": training} | self.spent).items()}

    def state_dict(self) -> dict[str, float]:
        """Return the seconds so far."""
        return self.seconds()

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue counting from ``state``."""
        self.start()
        self.training_before = state["time/training"]
        self.spent = {what: state[f"time/{what}"] for what in ROLLOUTS}
