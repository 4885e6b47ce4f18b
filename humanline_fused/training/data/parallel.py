"""Work on the rows of a dataset in chunks, in parallel and in order."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SIZE = 32
"""Rows per chunk."""

_work: Callable[[Any], Any]


def map_chunks(
    work: Callable[[Sequence[Item]], Result], items: Iterable[Item], num_proc: int | None = None
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Yield each chunk of items with the result of ``work``, in order.

    Args:
        work: a function of a chunk; with processes it and its results are pickled.
        num_proc: number of processes. None: two threads of this one; while one waits for the tokenizer,
            which uses all cores by itself, the other goes on.
    """
    items = iter(items)
    with _pool(work, num_proc) as pool:
        call = work if num_proc is None else _call
        pending: deque[tuple[Sequence[Item], Future[Result]]] = deque()
        while chunk := list(islice(items, SIZE)):
            pending.append((chunk, pool.submit(call, chunk)))
            if len(pending) > 2 * (num_proc or 1):
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()


def _pool(work: Callable[[Any], Any], num_proc: int | None) -> Executor:
    if num_proc is None:
        return ThreadPoolExecutor(2)
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    return ProcessPoolExecutor(num_proc, multiprocessing.get_context(method), _begin, (work,))


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work


def _call(chunk: Sequence[Any]) -> Any:
    return _work(chunk)
