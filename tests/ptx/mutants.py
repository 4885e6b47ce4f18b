"""Faults planted in a kernel, and what notices them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from tests.ptx.driver import active
from tests.ptx.emulator import Emulator
from tests.ptx.findings import EmulationError

WRONG = "wrong answer"


@dataclass(frozen=True)
class Mutant:
    """One change of a function's source.

    Attributes:
        function: compiled by itself or as a part of kernels.
        old: text that occurs once in its source.
        new: what replaces it.
        case: a test that runs the function.
        noticed: kind of the finding, or ``WRONG`` where the case's assertion fails.
    """

    function: Any
    old: str
    new: str
    case: Callable[[], None]
    noticed: str

    def __str__(self) -> str:
        return f"{self.function.__name__}: {self.old} -> {self.new or 'nothing'}"


def outcome(case: Callable[[], None], emulator: Emulator) -> str:
    """Kind of the first finding, ``WRONG``, or "unnoticed". Memory from ``torch.empty`` is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with active(emulator):
            case()
    except EmulationError as error:
        return error.findings[0].kind
    except AssertionError:
        return WRONG
    finally:
        torch.use_deterministic_algorithms(False)
    return "unnoticed"


@contextmanager
def changed(function: Any, old: str, new: str) -> Iterator[None]:
    """Change the source of a kernel or a device function, for what is compiled from now on."""
    source = function.src
    if source.count(old) != 1:
        raise ValueError(f"{function.__name__} has {source.count(old)} times, expected once: {old}")
    _set_source(function, source.replace(old, new))
    try:
        yield
    finally:
        _set_source(function, source)


def _set_source(function: Any, source: str) -> None:
    """Also forget the keys under which Triton keeps what it has compiled from the callers."""
    function._unsafe_update_src(source)
    for name, module in list(sys.modules.items()):
        if name.startswith("humanline_kernels"):
            for value in vars(module).values():
                if isinstance(value, JITFunction):
                    value.hash = None


def without_barriers(kernel: str) -> Callable[[str, str], str]:
    """Change of PTX: one kernel without any barrier."""
    return lambda name, ptx: ptx.replace("bar.sync", "// bar.sync") if name == kernel else ptx
