"""Time limit for user callbacks."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimeLimitExceeded(TimeoutError):
    """Code inside :func:`time_limit` exceeded the limit (as distinct from a TimeoutError of its own)."""


class _Expired(BaseException):
    """Not an Exception, so that code that retries after exceptions does not catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimitExceeded if the enclosed code takes longer than ``seconds``; no limit outside the main thread.

    The code runs in the main thread, because libraries with their own time limits (by SIGALRM) work only there. SIGUSR2
    interrupts it while it waits (for a socket, a lock, a sleep) or between two Python instructions, but not inside a C
    function that does not return.

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
        timer.join()  # a pending signal arrives while its handler is still installed
        signal.signal(signal.SIGUSR2, before)
