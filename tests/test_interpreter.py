"""``TRITON_INTERPRET=1`` runs the kernels without a GPU, and without the tests' changes to the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

LOSSES = """
from tests.inputs import random_batch
from tests.oracle import assert_matches_oracle

for objective in ("dpo", "kto", "grpo"):
    assert_matches_oracle(objective, random_batch("cpu", B=2, T=3))
"""


def test_interpreted_kernels_are_as_close_to_the_oracle_as_eager_is() -> None:
    root = Path(__file__).parents[1]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{root}:{root / 'kernels'}"}
    done = subprocess.run(
        [sys.executable, "-c", LOSSES], cwd=root, env=environment, stderr=subprocess.PIPE, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
