"""Triton's driver for the emulator: kernels are specialised, compiled and launched as on a GPU, on CPU tensors.

The compiler stops at PTX: what it would hand to ``ptxas`` is what the emulator runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget

from tests.ptx.emulator import Emulator
from tests.ptx.translate import Program

devices = count()
"""Triton keeps its compiled kernels by device: each driver has one of its own."""


class Utils:
    """What a compiled kernel asks of a driver before its first launch."""

    def __init__(self, emulator: Emulator):
        self.emulator = emulator

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, Program, int, int, int]:
        """(module, function, registers, spills, largest number of threads)."""
        return None, self.emulator.program(name, binary.decode(), shared), 0, 0, 1024


class EmulatedDriver:
    """What Triton asks of a driver, with the emulator as its only device."""

    def __init__(self, emulator: Emulator):
        self.emulator = emulator
        self.utils = Utils(emulator)
        self.device = next(devices)

    def launcher_cls(self, src: Any, metadata: Any) -> Any:
        def launch(x, y, z, stream, function, packed, launch_metadata, enter_hook, exit_hook, *arguments):
            named = zip(src.signature.items(), arguments, strict=True)
            passed = [(name, kind, value) for (name, kind), value in named if kind != "constexpr"]
            self.emulator.launch(function, (x, y, z), passed)

        return launch

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError("no launcher in C++ is built here")

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.emulator.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("an emulator's times mean nothing")


def stop_at_ptx(*arguments: Any) -> tuple[str, str] | None:
    """Triton's hook: called without arguments for its part of the cache's key, else to change the stages."""
    if not arguments:
        return "PTX alone", "PTX alone"
    _, stages, *_ = arguments
    stages["cubin"] = lambda ptx, metadata: ptx.encode()
    return None


@contextmanager
def active(emulator: Emulator) -> Iterator[Emulator]:
    """Send Triton's launches to the emulator. Kernels must have been defined without ``TRITON_INTERPRET``."""
    runtime: Any = triton.runtime.driver
    before, hook = runtime._active, knobs.runtime.add_stages_inspection_hook
    runtime.set_active(EmulatedDriver(emulator))
    knobs.runtime.add_stages_inspection_hook = stop_at_ptx  # type: ignore[assignment]
    try:
        yield emulator
    finally:
        runtime._active = before
        knobs.runtime.add_stages_inspection_hook = hook
