"""Launches of a loss on logits: its kernels, and small operations of torch, which cost the host as much."""

import pytest

from humanline_fused import Logits
from humanline_fused.validation import values
from tests.inputs import loss_of, random_batch
from tests.launch_counter import launches

FORWARD = {"dpo": 5, "kto": 6, "grpo": 3}
BACKWARD = 2  # one of them is the 1 that autograd begins with


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable checks of values, which only run on a CPU."""
    monkeypatch.setattr(values, "may_look_at", lambda tensor: False)


def launches_of(monkeypatch, device, objective, **settings):
    """Return the launches of a loss, and those of its backward."""
    batch = random_batch(device)
    leaf = batch.logits.requires_grad_()
    policy, reference = Logits(leaf), Logits(batch.ref_logits)
    with launches(monkeypatch) as forward:
        loss = loss_of(objective, policy, reference, batch, impl="triton", **settings).loss
    with launches(monkeypatch) as backward:
        loss.backward()
    return forward, backward


def test_a_loss_on_logits_has_few_launches(monkeypatch, device, objective):
    forward, backward = launches_of(monkeypatch, device, objective)
    assert forward.count("token_logp_forward_kernel") == forward.count(f"{objective}_loss_kernel") == 1
    assert len(forward) <= FORWARD[objective], forward
    assert len(backward) <= BACKWARD, backward


def test_grpo_in_one_launch_has_few_others(monkeypatch, device):
    forward, backward = launches_of(monkeypatch, device, "grpo", one_launch=True)
    assert forward.count("grpo_one_launch_kernel") == 1
    assert len(forward) <= 4, forward
    assert len(backward) <= 2, backward
