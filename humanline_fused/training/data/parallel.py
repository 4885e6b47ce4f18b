"""Work on the rows of a dataset in chunks, in parallel and in order."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SIZE = 32
"""Rows per chunk."""

MOST_THREADS = 8
"""Python's own part of the work keeps no more threads busy."""

PARALLELISM = "TOKENIZERS_PARALLELISM"
"""Environment variable of the ``tokenizers`` library."""

_work: Callable[[Any], Any]


def map_chunks(
    work: Callable[[Sequence[Item]], Result], items: Iterable[Item], num_proc: int | None = None
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Yield each chunk of items with the result of ``work``, in order.

    Args:
        work: a function of a chunk; with processes it and its results are pickled.
        num_proc: number of processes. None: a thread of this one for every core.
    """
    items = iter(items)
    workers = num_proc or min(_cores(), MOST_THREADS)
    with _serial_tokenizers(), _pool(work, num_proc, workers) as pool:
        call = work if num_proc is None else _call
        pending: deque[tuple[Sequence[Item], Future[Result]]] = deque()
        while chunk := list(islice(items, SIZE)):
            pending.append((chunk, pool.submit(call, chunk)))
            if len(pending) > 2 * workers:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()


@contextmanager
def _serial_tokenizers() -> Iterator[None]:
    """Switch the threads of the ``tokenizers`` library off until exit: with threads of our own they share its few, wait
    for each other, and leave a fifth of the cores idle.
    """
    if PARALLELISM in os.environ:
        yield
        return
    os.environ[PARALLELISM] = "false"
    try:
        yield
    finally:
        del os.environ[PARALLELISM]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pool(work: Callable[[Any], Any], num_proc: int | None, workers: int) -> Executor:
    if num_proc is None:
        return ThreadPoolExecutor(workers)
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    return ProcessPoolExecutor(workers, multiprocessing.get_context(method), _begin, (work,))


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends these


def _call(chunk: Sequence[Any]) -> Any:
    return _work(chunk)
