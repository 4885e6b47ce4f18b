"""Calls with random arguments: of functions, of settings, of rows of data, of the command line."""

import random
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.faults import function_calls, row_calls, setting_calls
from tests.faults.command_calls import Commands
from tests.faults.outcome import Fault, Outcome

PATIENCE = 240
"""Seconds after which a call counts as hanging."""


class Hangs(BaseException):
    """A call took more than :data:`PATIENCE`."""


class Calls:
    """Calls of one of the four kinds.

    Args:
        here: folder with the inputs of commands.
    """

    def __init__(self, here: Path) -> None:
        self.kinds: list[Callable[[int], Fault]] = [
            function_calls.call,
            setting_calls.call,
            row_calls.call,
            Commands(here),
        ]

    def __call__(self, seed: int) -> Fault:
        (kind,) = random.Random(f"kind of {seed}").choices(self.kinds, weights=(60, 15, 15, 10))
        before = signal.signal(signal.SIGALRM, _raise)
        signal.alarm(PATIENCE)
        try:
            return kind(seed)
        except Hangs:
            return Fault("call", seed, "calls that hang", Outcome.LOST, f"no end after {PATIENCE} s")
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Hangs
