"""The same tests run the kernels on a GPU, or on a CPU: compiled and emulated, or under Triton's interpreter.

Without a GPU, or with ``CUDA_VISIBLE_DEVICES= pytest``, kernels run as compiled for sm_90, emulated (tests/ptx).
``pytest --interpret`` interprets them, and so does ``pytest`` where Triton has no compiler. ``pytest -m gpu`` runs only
the tests of a GPU, and ``pytest --ptx 80`` runs them as compiled for sm_80.
"""

import gc
import importlib.metadata
import importlib.util
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from humanline_fused.types import Impl
from tests.disk import do_not_wait_for_the_disk
from tests.other_processor import multiply_as_another_processor_if_asked
from tests.seeds import keep_no_seeds_for_gpus

REPORTED = ("torch", "triton", "transformers", "accelerate", "datasets", "tokenizers", "peft", "trl")
"""Packages whose versions are printed at the start of a run, because they may cause a failure."""

EMULATED = 90
"""Architecture of the kernels that are emulated, unless another one is asked for."""

LONGEST = ("static_budgets", "checkpoint", "processes", "fsdp", "start", "budgeted_training", "ptx_mutants", "lm_head")
"""Files that take longest. They are begun first, so that no worker is alone at the end."""

KERNEL_TEST = re.compile(r"^def \w+\([^)]*\b(device|emulator)\b[,)]", re.MULTILINE)
"""A function with a fixture that a test of the kernels has."""

multiply_as_another_processor_if_asked()
do_not_wait_for_the_disk()
keep_no_seeds_for_gpus()

# In CI a failure must be caused by the commit, so hypothesis searches for new examples only on developers' machines.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ptx",
        type=int,
        metavar="ARCH",
        help="run only the GPU's tests, on kernels compiled for sm_ARCH, without a GPU",
    )
    parser.addoption("--interpret", action="store_true", help="interpret the kernels instead of emulating them")


def pytest_configure(config: pytest.Config) -> None:
    """Choose how kernels run, before Triton or a test module is imported: a kernel is defined one way or the other."""
    config.option.loadscopereorder = False  # xdist would begin with the files of the most tests
    arch = config.getoption("ptx")
    if torch.cuda.is_available() and not arch:
        return
    if arch or (triton_compiles() and not config.getoption("interpret")):
        os.environ.pop("TRITON_INTERPRET", None)
        from tests.ptx.session import Session

        config.pluginmanager.register(Session(arch or EMULATED, alone=bool(arch)), "ptx")
    # Triton interprets, unless the session has told it not to; and humanline_fused.impl permits it without a GPU.
    os.environ["TRITON_INTERPRET"] = "1"


def triton_compiles() -> bool:
    """Return if Triton has its compiler for NVIDIA, without importing it."""
    found = importlib.util.find_spec("triton")
    return any((Path(folder) / "backends/nvidia").is_dir() for folder in found.submodule_search_locations or ())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where only tests of the kernels run, import no file without one: most need packages that those do not."""
    alone = config.getoption("ptx") or config.getoption("markexpr") == "gpu"
    is_test = alone and collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if is_test and not KERNEL_TEST.search(collection_path.read_text(encoding="utf-8")) else None


def pytest_report_header() -> str:
    return ", ".join(f"{name} {installed_version(name)}" for name in REPORTED)


def installed_version(distribution: str) -> str:
    """Return the version that is imported: the first on the path, where there are several."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@pytest.fixture(scope="session", autouse=True)
def interpreter_rounds_as_hardware_does() -> None:
    from tests.interpreter import round_as_hardware_does

    round_as_hardware_does()


@pytest.fixture(scope="module", autouse=True)
def imported_objects_are_no_garbage() -> None:
    """Exclude what was imported before a file from garbage collection, which accelerate runs whenever training starts.

    A collection of all that the suite imports, above all by torch.compile, takes as long as a training of three steps.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    begun_first = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: begun_first.get(item.path.name, len(LONGEST)))
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
        pytest.skip("the kernels run on a GPU or are interpreted here, not emulated")
    return session.emulator


@pytest.fixture(params=["eager", "triton"])
def impl(request: pytest.FixtureRequest) -> Impl:
    return request.param


@pytest.fixture(params=["dpo", "kto", "grpo"])
def objective(request: pytest.FixtureRequest) -> str:
    return request.param
