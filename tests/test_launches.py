"""Launches of a loss on logits: its kernels, and small operations of torch, which cost the host as much."""

import pytest

from benchmarks.static.loss_launches import ALLOWED
from tests.launch_counter import launches_of_loss

KERNELS = {
    "dpo": ["token_logp_forward_kernel", "dpo_loss_kernel"],
    "kto": ["token_logp_forward_kernel", "kto_loss_kernel"],
    "grpo": ["token_logp_forward_kernel", "grpo_loss_kernel"],
    "grpo in one launch": ["grpo_one_launch_kernel"],
}


@pytest.mark.parametrize("loss", KERNELS)
def test_a_loss_on_logits_has_few_launches(device, loss):
    forward, backward = launches_of_loss(loss, device)
    assert all(forward.count(kernel) == 1 for kernel in [*KERNELS[loss], "means_kernel"]), forward
    assert len(forward) <= ALLOWED[loss][0], forward
    assert len(backward) <= ALLOWED[loss][1], backward
