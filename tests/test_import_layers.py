"""The arrows of the house: who may import whom, checked in the source and in a fresh interpreter."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "CUDA_VISIBLE_DEVICES": ""}
ENVIRONMENT.pop("TRITON_INTERPRET", None)

WITHOUT_TRITON = "import sys; sys.modules['triton'] = None\n"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)


def test_every_import_follows_the_arrows() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    linted = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_importing_the_package_imports_neither_triton_nor_transformers() -> None:
    code = "import sys, humanline_fused; print({'triton', 'humanline_kernels', 'transformers'} & set(sys.modules))"
    ran = run_python(code)
    assert ran.stdout.strip() == "set()", ran.stdout + ran.stderr


def test_the_losses_work_where_triton_does_not_exist() -> None:
    ran = run_python(
        WITHOUT_TRITON
        + """
import torch
from humanline_fused import HumanlineClamp, Logits, dpo_loss
logits = torch.zeros(2, 3, 5, requires_grad=True)
ids, mask = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
out = dpo_loss(Logits(logits), Logits(logits.detach()), ids, mask, clamp=HumanlineClamp())
out.loss.backward()
print(f"{out.loss.item():.4f}", bool(logits.grad.abs().sum() > 0))
"""
    )
    assert ran.stdout.split() == ["0.6931", "True"], ran.stderr


def test_asking_for_triton_by_name_where_it_does_not_exist_is_an_error_that_says_so() -> None:
    ran = run_python(
        WITHOUT_TRITON
        + """
import torch
from humanline_fused import choose_impl
try:
    choose_impl("triton", torch.device("cpu"), torch.float32)
except RuntimeError as error:
    print(error)
"""
    )
    assert "triton is not installed" in ran.stdout, ran.stderr


def test_the_trainer_is_not_imported_with_the_package() -> None:
    ran = run_python("import sys, humanline_fused; print([m for m in sys.modules if 'training' in m.split('.')])")
    assert ran.stdout.strip() == "[]", ran.stderr
