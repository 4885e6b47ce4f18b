"""Import layers and file names, checked in the source and in a new interpreter."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import forked

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "CUDA_VISIBLE_DEVICES": ""}
ENVIRONMENT.pop("TRITON_INTERPRET", None)


ONE_THING_IN_SEVERAL_LAYERS = {
    *("token_logp", "log_ratio", "dpo_loss", "kto_loss", "grpo_loss", "grpo_one_launch"),
    *("epilogue", "scores", "sequences", "softmax"),
}
"""File names that may occur in several packages: operations and terms with a part in every layer."""


def run_python(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def output() -> list[str]:
    """Output of one process: what an import of the package loads, then what the losses do without triton."""
    return run_python(
        """
import sys
import humanline_fused
print(*sys.modules)
for name in [name for name in sys.modules if name.startswith("humanline_fused")]:
    del sys.modules[name]
sys.modules["triton"] = None
import torch
from humanline_fused import HumanlineClamp, Logits, choose_impl, dpo_loss
logits = torch.zeros(2, 3, 5, requires_grad=True)
ids, mask = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
out = dpo_loss(Logits(logits), Logits(logits.detach()), ids, mask, clamp=HumanlineClamp())
out.loss.backward()
print(f"{out.loss.item():.4f}", bool(logits.grad.abs().sum() > 0))
for device in ("cpu", "cuda"):
    try:
        choose_impl("triton", torch.device(device), torch.float32)
    except RuntimeError as error:
        print(error)
"""
    ).splitlines()


@pytest.fixture
def imported(output: list[str]) -> set[str]:
    """Names of all modules that are loaded after an import of the package."""
    return set(output[0].split())


@pytest.fixture
def without_triton(output: list[str]) -> list[str]:
    """The loss and True if it has a gradient, then the errors."""
    return output[1:]


def test_every_import_follows_the_layer_contracts() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    linted = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_a_file_name_used_in_several_packages_means_one_thing() -> None:
    files = [*ROOT.glob("humanline_fused/**/*.py"), *ROOT.glob("kernels/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    names = [file.stem for file in files if not file.stem.startswith("__")]
    assert {name for name in names if names.count(name) > 1} <= ONE_THING_IN_SEVERAL_LAYERS


def test_importing_the_package_imports_neither_triton_nor_transformers_nor_trl(imported: set[str]) -> None:
    assert "humanline_fused" in imported
    assert imported & {"triton", "humanline_kernels", "transformers", "trl"} == set()


def test_the_losses_work_without_triton(without_triton: list[str]) -> None:
    assert without_triton[0].split() == ["0.6931", "True"]


def test_impl_triton_without_triton_is_an_error_that_names_the_missing_package(without_triton: list[str]) -> None:
    errors = without_triton[1:]
    assert len(errors) == 2
    assert all(error.startswith("impl='triton' cannot run here: triton is not installed") for error in errors)


@pytest.mark.parametrize("layer", ["training", "integrations"])
def test_the_trainers_are_not_imported_with_the_package(imported: set[str], layer: str) -> None:
    assert [module for module in imported if layer in module.split(".")] == []


def import_without_trl() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("humanline_fused", "trl")]:
        del sys.modules[name]
    sys.modules["trl"] = None  # type: ignore[assignment]
    for name in ("humanline_fused.training", "humanline_fused.cli"):
        importlib.import_module(name)


def test_the_trainer_and_the_command_line_work_without_trl() -> None:
    forked(import_without_trl)
