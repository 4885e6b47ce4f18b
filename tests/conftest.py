"""The same tests run the kernels on a GPU, or on a CPU: under Triton's interpreter, or compiled and emulated.

On a machine with a GPU, ``CUDA_VISIBLE_DEVICES= pytest`` uses the interpreter, and ``pytest -m gpu`` runs only the
compiled tests. ``pytest --ptx 90`` runs these on the kernels as compiled for sm_90 (tests/ptx).
"""

import gc
import importlib.metadata
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from humanline_fused.types import Impl
from tests.other_processor import multiply_as_another_processor_if_asked

REPORTED = ("torch", "triton", "transformers", "accelerate", "datasets", "tokenizers", "peft", "trl")
"""Packages whose versions are printed at the start of a run, because they may cause a failure."""

multiply_as_another_processor_if_asked()

# In CI a failure must be caused by the commit, so hypothesis searches for new examples only on developers' machines.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ptx", type=int, metavar="ARCH", help="run the GPU's tests on kernels compiled for sm_ARCH, without a GPU"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose how kernels run, before Triton or a test module is imported: a kernel is defined one way or the other."""
    if arch := config.getoption("ptx"):
        os.environ.pop("TRITON_INTERPRET", None)
        from tests.ptx.session import Session

        config.pluginmanager.register(Session(arch), "ptx")
    if arch or not torch.cuda.is_available():
        # Triton interprets, unless the session has told it not to; and humanline_fused.impl permits it without a GPU.
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_report_header() -> str:
    installed = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    return ", ".join(f"{name} {installed.get(name, 'not installed')}" for name in REPORTED)


@pytest.fixture(scope="session", autouse=True)
def interpreter_rounds_as_hardware_does(request: pytest.FixtureRequest) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1" and not request.config.getoption("ptx"):
        from tests.interpreter import round_as_hardware_does

        round_as_hardware_does()


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection, which accelerate runs whenever training starts."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Signals that end a program do so: a job in the background, or under nohup, ignores some from its start."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {one: signal.signal(one, handler) for one, handler in handlers.items()}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Device of the operations' tests."""
    on_gpu = torch.cuda.is_available() and not request.config.getoption("ptx")
    return torch.device("cuda" if on_gpu else "cpu")


@pytest.fixture(scope="session")
def emulator(request: pytest.FixtureRequest) -> Any:
    """The emulator that runs the kernels, tests.ptx.emulator.Emulator."""
    session = request.config.pluginmanager.get_plugin("ptx")
    if session is None:
        pytest.skip("pytest --ptx 90 runs the kernels emulated")
    return session.emulator


@pytest.fixture(params=["eager", "triton"])
def impl(request: pytest.FixtureRequest) -> Impl:
    return request.param


@pytest.fixture(params=["dpo", "kto", "grpo"])
def objective(request: pytest.FixtureRequest) -> str:
    return request.param
