"""The tests' interpreter (fast_interpreter.py) gives the same bits as Triton's own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from humanline_fused import Logits, token_logp_and_entropy
from tests.inputs import loss_of, random_batch

SLOWLY = """
import sys
from tests import interpreter
interpreter.remember = lambda: None
interpreter.round_as_hardware_does()
from tests.test_interpreter import answers
import torch
torch.save(answers(), sys.argv[1])
"""


def answers() -> list[Tensor]:
    """Return losses, log-probs, entropies and gradients computed by the kernels."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for objective in ("dpo", "kto", "grpo"):
            batch = random_batch("cpu", dtype=dtype)
            logits = batch.logits.requires_grad_()
            policy = Logits(logits, temperature=0.7, softcap=20.0)
            out = loss_of(objective, policy, Logits(batch.ref_logits), batch, impl="triton")
            out.loss.backward()
            found += [out.loss.detach(), out.logp, out.ref_logp, logits.grad]
        scores = token_logp_and_entropy(Logits(batch.logits.detach()), batch.target_ids, batch.loss_mask, impl="triton")
        found += [scores.logp, scores.entropy]
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled here")
def test_caching_changes_no_bit(tmp_path: Path) -> None:
    file, root = tmp_path / "slowly.pt", Path(__file__).parents[1]
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{root}:{root / 'kernels'}"}
    subprocess.run([sys.executable, "-c", SLOWLY, str(file)], cwd=root, env=environment, check=True)
    for fast, slow in zip(answers(), torch.load(file), strict=True):
        assert torch.equal(fast, slow)
        assert fast.count_nonzero()
