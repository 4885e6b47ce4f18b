"""Two gears, one body: the kernels run compiled where there is a GPU, else under Triton's interpreter on the CPU.

On a machine with a GPU, ``CUDA_VISIBLE_DEVICES= pytest`` is the CPU gear and ``pytest -m gpu`` what runs compiled.
"""

import gc
import os

import pytest
import torch
from hypothesis import settings

from humanline_fused.types import Impl
from tests.other_processor import multiply_as_another_processor_if_asked

# Triton reads it when a kernel is defined, so before the first test module is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

multiply_as_another_processor_if_asked()

# A red main is a defect of the commit at hand: what hypothesis searches anew, it searches on a developer's machine.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session", autouse=True)
def interpreter_rounds_as_hardware_does() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        from tests.interpreter import round_as_hardware_does

        round_as_hardware_does()


def pytest_collection_finish() -> None:
    """accelerate collects garbage whenever a training starts: leave out what the imports made, which is most of it."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the operations' tests run: the gear."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["eager", "triton"])
def impl(request: pytest.FixtureRequest) -> Impl:
    return request.param


@pytest.fixture(params=["dpo", "kto", "grpo"])
def objective(request: pytest.FixtureRequest) -> str:
    return request.param
