"""Processes that compile kernels, whatever the variables of this one say."""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context


@contextmanager
def new_processes() -> Iterator[ProcessPoolExecutor]:
    """One for each core, with an empty cache of compiled kernels that all share."""
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(None, get_context("spawn"), _with_the_compiler, (cache,)) as pool,
    ):
        yield pool


def _with_the_compiler(cache: str) -> None:
    """The interpreter would replace the compiler, and loops are named by line info."""
    for name in ("TRITON_INTERPRET", "TRITON_DISABLE_LINE_INFO"):
        os.environ.pop(name, None)
    os.environ["TRITON_CACHE_DIR"] = cache
