"""Functions in new processes that need not import torch and transformers, because a server that has is forked."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
IMPORTED = ["tests.ranks"]


def call(function: Callable[..., Any], *arguments: Any, output: Path) -> None:
    """Call a function of a module in a process of its own, and write to ``output`` what it prints.

    It has the environment that the first call of this process had.

    Raises:
        AssertionError: the process failed; with what it has printed.
    """
    CONTEXT.set_forkserver_preload(IMPORTED)
    process = CONTEXT.Process(target=_printing, args=(output, function, arguments))
    process.start()
    process.join()
    assert process.exitcode == 0, f"exit code {process.exitcode}: {output.read_text()}"


def _printing(output: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(written, descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))
    function(*arguments)
