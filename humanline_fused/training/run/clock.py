"""Where a run's time goes: training, and what it waits for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

ROLLOUTS = ("generation", "reward")
"""What online training waits for and offline training does not: the samples, and their rewards."""


class Clock:
    """Cumulative seconds by what they were spent on. What nobody claimed is training; what is set aside is in none.

    Args:
        device: what is queued on it is waited for at the borders, so that it counts where it belongs.

    >>> clock = Clock(torch.device("cpu"))
    >>> clock.start()
    >>> with clock.spent_on("generation"):
    ...     pass
    >>> list(clock.seconds())
    ['time/training', 'time/generation', 'time/reward']
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        """Begin at 0."""
        self.spent: dict[str, float] = dict.fromkeys(ROLLOUTS, 0.0)
        self.elsewhere = 0.0  # claimed or set aside since `began`
        self.training_before = 0.0
        self.stopped: float | None = None  # when what is not training began, while it lasts
        self.began = time.monotonic()

    @contextmanager
    def spent_on(self, what: str) -> Iterator[None]:
        """Count what happens inside under ``what``, one of :data:`ROLLOUTS`; under any other name it is set aside."""
        self._wait()
        entered = self.stopped = time.monotonic()
        try:
            yield
        finally:
            self._wait()
            passed = time.monotonic() - entered
            self.stopped = None
            self.elsewhere += passed
            if what in self.spent:
                self.spent[what] += passed

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def seconds(self) -> dict[str, float]:
        """``time/training``, ``time/generation``, ``time/reward``, so far."""
        now = time.monotonic() if self.stopped is None else self.stopped
        training = self.training_before + now - self.began - self.elsewhere
        return {f"time/{what}": round(passed, 4) for what, passed in ({"training": training} | self.spent).items()}

    def state_dict(self) -> dict[str, float]:
        """The seconds so far."""
        return self.seconds()

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on counting from there."""
        self.start()
        self.training_before = state["time/training"]
        self.spent = {what: state[f"time/{what}"] for what in ROLLOUTS}
