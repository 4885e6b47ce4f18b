"""The same tests run the kernels compiled on a GPU, or under Triton's interpreter on a CPU.

On a machine with a GPU, ``CUDA_VISIBLE_DEVICES= pytest`` uses the interpreter, and ``pytest -m gpu`` runs only the
compiled tests.
"""

import gc
import importlib.metadata
import os

import pytest
import torch
from hypothesis import settings

from humanline_fused.types import Impl
from tests.other_processor import multiply_as_another_processor_if_asked

# Triton reads it when a kernel is defined, so set it before the first test module is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

REPORTED = ("torch", "triton", "transformers", "accelerate", "datasets", "tokenizers", "peft", "trl")
"""Packages whose versions are printed at the start of a run, because they may cause a failure."""

multiply_as_another_processor_if_asked()

# In CI a failure must be caused by the commit, so hypothesis searches for new examples only on developers' machines.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_report_header() -> str:
    installed = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    return ", ".join(f"{name} {installed.get(name, 'not installed')}" for name in REPORTED)


@pytest.fixture(scope="session", autouse=True)
def interpreter_rounds_as_hardware_does() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
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


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Device of the operations' tests."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["eager", "triton"])
def impl(request: pytest.FixtureRequest) -> Impl:
    return request.param


@pytest.fixture(params=["dpo", "kto", "grpo"])
def objective(request: pytest.FixtureRequest) -> str:
    return request.param
