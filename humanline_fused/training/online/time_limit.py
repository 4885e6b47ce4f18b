"""An end to what somebody else's code does not end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimeLimitExceeded(TimeoutError):
    """The code inside a :func:`time_limit` took longer (and did not raise a TimeoutError of its own)."""


class _Expired(BaseException):
    """Not an Exception: code that tries again after any of those must not catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimitExceeded if what happens inside takes longer. Outside the main thread there is no limit.

    The code runs in the main thread, because libraries that have time limits of their own (by SIGALRM) work nowhere
    else. It is interrupted by SIGUSR2: while it waits (for a socket, a lock, a sleep) or between two of its
    instructions, not inside a C function that does not return.

    >>> import time
    >>> with time_limit(0.01):
    ...     time.sleep(60)
    Traceback (most recent call last):
    humanline_fused.training.online.time_limit.TimeLimitExceeded: it took longer than 0.01 s
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = False

    def expire(number: int, frame: FrameType | None) -> None:
        if not over:
            raise _Expired

    before = signal.signal(signal.SIGUSR2, expire)
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR2))
    timer.daemon = True
    timer.start()
    try:
        yield
    except _Expired:
        raise TimeLimitExceeded(f"it took longer than {seconds:g} s") from None
    finally:
        over = True
        timer.cancel()
        timer.join()  # a signal that is under way arrives while there is a handler for it
        signal.signal(signal.SIGUSR2, before)
