"""Ctrl-C that a library has turned into an error of its own is Ctrl-C again."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[None]:
    """End with KeyboardInterrupt whatever error Ctrl-C has led to inside.

    KeyboardInterrupt is raised between any two instructions. Where it cuts off a library's cleaning up, the user would
    read that library's error, as if a file were damaged. A handler that ignores SIGINT, or that is not Python's, stays;
    so does the present one outside of the main thread.

    Raises:
        KeyboardInterrupt: after SIGINT, in place of any other exception.

    >>> with interruptible():
    ...     pass
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        before(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except BaseException as error:
        if interrupted and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
