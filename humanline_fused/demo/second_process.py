"""A function in a second process, with its progress, its result and its error."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class SecondProcess(Generic[Argument, Result]):
    """Calls ``function(argument, report)`` in a second process with one thread, until the end of the ``with``.

    Args:
        function: a function of a module, since the process imports it; ``report(number)`` is for its progress.
        argument: picklable.

    >>> with SecondProcess(work, argument) as other:  # doctest: +SKIP
    ...     result = other.result(print)
    """

    def __init__(self, function: Callable[[Argument, Callable[[int], None]], Result], argument: Argument) -> None:
        # spawn: a fork of a process with torch's threads may hang.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_call, args=(theirs, function, argument), daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()

    def result(self, report: Callable[[int], object]) -> Result:
        """Wait for the result, and pass on every report.

        Raises:
            RuntimeError: the function raised, or its process died.
        """
        while True:
            try:
                kind, value = self.connection.recv()
            except EOFError:
                self.process.join()
                raise RuntimeError(f"the second process ended with exit code {self.process.exitcode}") from None
            if kind == "error":
                raise RuntimeError(f"the second process failed:\n{value}")
            if kind == "result":
                return value
            report(value)


def _call(connection: Connection, function: Callable[..., Any], argument: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the first process ends this one
    torch.set_num_threads(1)
    with suppress(BrokenPipeError):  # the first process was killed
        try:
            result = function(argument, lambda number: connection.send(("report", number)))
        except Exception:
            connection.send(("error", traceback.format_exc()))
        else:
            connection.send(("result", result))
