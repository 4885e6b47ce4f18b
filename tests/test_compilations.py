"""A kernel is compiled once for all lengths, strides and addresses; the compiler's keys are counted without a GPU."""

import json
import os
import subprocess
import sys

import pytest

COUNT = """
import json
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

backend = make_backend(GPUTarget("cuda", 90, 32))
keys = {}

def note(self, *args, grid, warmup=False, **kwargs):
    _, specialisation, options = create_function_from_signature(self.signature, self.params, backend)(*args, **kwargs)
    keys.setdefault(self.fn.__name__, set()).add((str(specialisation), str(sorted(options.items()))))

JITFunction.run = note

from humanline_fused import autograd
from humanline_fused.softmax import Softmax

def step(logits, packed):
    B, T, V = logits.shape
    ids, mask = torch.zeros(B, T, dtype=torch.long), torch.ones(B, T, dtype=torch.bool)
    bounds = torch.arange(0, B * T + 1, max(B * T // 2, 1)) if packed else None
    advantages = torch.ones(B)[:, None].expand(B, T)
    low_high = {"log_epsilon_P": -1.5, "log_epsilon_R": 1.5}
    grpo = {"epsilon": 0.2, "epsilon_high": 0.2, "beta": 0.1, **low_high}
    logp, _, ref_logp = autograd.token_logp(logits, logits.detach(), ids, mask)
    losses = [
        autograd.dpo_loss(logp, ref_logp, mask, bounds, beta=0.1, label_smoothing=0.0, **low_high),
        autograd.kto_loss(
            logp, ref_logp, mask, bounds, torch.ones(B, dtype=torch.bool), torch.zeros(()),
            beta=0.1, desirable_weight=1.0, undesirable_weight=1.0, **low_high,
        ),
        autograd.grpo_loss(logp, ref_logp, mask, advantages, None, **grpo),
        autograd.grpo_one_launch(
            logits, logits.detach(), None, ids, mask, Softmax(), advantages, None, **grpo,
        ).result,
    ]
    sum(result.loss for result in losses).backward()
    rows = logits.detach()[0]
    autograd.score_and_write_dlogits_(rows[T // 2 :], ids[0, T // 2 :], Softmax())

def count(name):
    print(json.dumps([name, {kernel: len(found) for kernel, found in keys.items()}]))
    keys.clear()
"""

TWENTY_LENGTHS = """
for T in [*range(1, 13), 15, 16, 17, 31, 32, 100, 128, 1000]:
    step(torch.empty(2, T, 301, dtype=torch.bfloat16, requires_grad=True), packed=False)
"""

STRIDES_AND_ADDRESSES = """
for first, width in [(0, 301), (1, 302), (3, 304), (8, 320)]:
    wide = torch.empty(4, 6, width, dtype=torch.bfloat16, requires_grad=True)
    step(wide[::2, 1:, width - 301 :], packed=False)
    step(wide[:2, first % 4 :, :301], packed=False)
"""

TWO_VOCABULARIES = """
for V in (301, 9000):
    step(torch.empty(2, 3, V, dtype=torch.bfloat16, requires_grad=True), packed=False)
"""

KERNELS = {
    "token_logp_forward_kernel": 1,
    "token_logp_backward_kernel": 1,
    "dpo_loss_kernel": 1,
    "kto_loss_kernel": 1,
    "grpo_loss_kernel": 1,
    "grpo_one_launch_kernel": 1,
    "score_and_dlogits_kernel": 1,
    "means_kernel": 3,  # of sequences, of tokens, and of tokens with a divisor
    "scale_dlogits_kernel": 1,
}


@pytest.fixture(scope="module")
def compilations() -> dict[str, dict[str, int]]:
    """Compilations of each kernel by case, counted in one process without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    cases = {"lengths": TWENTY_LENGTHS, "strides": STRIDES_AND_ADDRESSES, "vocabularies": TWO_VOCABULARIES}
    script = COUNT + "".join(f"{case}\ncount({name!r})\n" for name, case in cases.items())
    child = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return dict(json.loads(line) for line in child.stdout.splitlines())


def test_twenty_lengths_are_one_compilation_of_every_kernel(compilations):
    assert compilations["lengths"] == KERNELS


def test_every_stride_and_address_of_the_logits_is_the_same_compilation(compilations):
    assert compilations["strides"] == KERNELS


def test_the_count_can_tell_a_second_vocabulary_size_class(compilations):
    assert compilations["vocabularies"]["token_logp_forward_kernel"] == 2
    assert compilations["vocabularies"]["dpo_loss_kernel"] == 1
