"""Calls in a child of the tests' process: what has to be undone, or to be measured apart, costs no import of torch."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


def forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of a module returns in a fork of this process, or raise what it raises."""
    with ProcessPoolExecutor(1, get_context("fork")) as one:
        return one.submit(function, *arguments).result()
