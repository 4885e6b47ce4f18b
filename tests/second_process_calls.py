"""Functions for a second process, in a file that imports nothing slow."""

import os
import time
from collections.abc import Callable


def fail(reason: str, report: Callable[[int], None]) -> None:
    raise ValueError(reason)


def die(code: int, report: Callable[[int], None]) -> None:
    os._exit(code)


def sleep(seconds: int, report: Callable[[int], None]) -> None:
    time.sleep(seconds)
