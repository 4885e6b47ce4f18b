"""kto_loss and kto_kl by hand (docs/math.md, equations 6 to 8). Properties of all losses: test_losses.py."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from humanline_fused import Logits, TokenLogp, kto_kl, kto_loss
from tests.inputs import random_batch, token_batch
from tests.ranks import on_ranks


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Sequence 0: log-ratios 0.5 and 2 (clamped to 1.5), R = 2. Sequence 1: −0.25 and −3 (clamped to −1.5), R = −1.75.
LOGP = [[-1.0, -1.0], [-1.25, -4.0]]
REF_LOGP = [[-1.5, -3.0], [-1.0, -1.0]]


def loss(impl, device, desirable, **settings):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, device=device)
    labels = torch.tensor(desirable, device=device)
    return policy, kto_loss(TokenLogp(policy), reference, ids, mask, labels, impl=impl, **settings)


def test_the_value_of_a_desirable_and_an_undesirable_sequence(impl, device):
    _, out = loss(impl, device, [True, False], kl=0.5, beta=0.4, desirable_weight=1.1, undesirable_weight=0.7)
    expected = 1.1 * (1 - sigmoid(0.4 * (2 - 0.5))) + 0.7 * (1 - sigmoid(0.4 * (0.5 + 1.75)))
    assert out.loss.item() == pytest.approx(expected / 2, rel=1e-6)
    assert out.rewards.tolist() == pytest.approx([0.8, -0.7], rel=1e-6)
    assert out.kl.item() == 0.5


def test_the_gradient_pulls_both_ways_where_the_clamp_lets_it_through(impl, device):
    policy, out = loss(impl, device, [True, False], kl=0.5, beta=0.4, desirable_weight=1.1, undesirable_weight=0.7)
    out.loss.backward()
    up = 1.1 * 0.4 * sigmoid(0.6) * sigmoid(-0.6) / 2
    down = 0.7 * 0.4 * sigmoid(0.9) * sigmoid(-0.9) / 2
    assert policy.grad.flatten().tolist() == pytest.approx([-up, 0.0, down, 0.0], rel=1e-6)


def test_swapping_the_label_swaps_the_side_of_the_reference_point(impl, device):
    _, desirable = loss(impl, device, [True, True], kl=0.0)
    _, undesirable = loss(impl, device, [False, False], kl=0.0)
    assert desirable.loss.item() + undesirable.loss.item() == pytest.approx(1.0, rel=1e-6)


def test_the_reference_point_is_the_mean_clamped_log_ratio_of_the_mismatched_pairs(impl, device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, device=device)
    assert kto_kl(TokenLogp(policy), reference, ids, mask, impl=impl).item() == 0.125
    assert kto_kl(TokenLogp(policy), reference, ids, mask, clamp=None, impl=impl).item() == 0  # mean −0.375


def test_the_reference_point_is_detached_and_never_negative__oracle_h(impl, device):
    policy, reference, ids, mask = token_batch([[-5.0]], [[-1.0]], device=device)
    z0 = kto_kl(TokenLogp(policy), reference, ids, mask, impl=impl)
    assert z0.item() == 0
    assert not z0.requires_grad
    kl = torch.tensor(0.3, device=device, requires_grad=True)
    desirable = torch.tensor([True], device=device)
    kto_loss(TokenLogp(policy), reference, ids, mask, desirable, kl=kl, impl=impl).loss.backward()
    assert kl.grad is None


def test_an_empty_mismatched_pair_leaves_the_mean(impl, device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, [[1, 1], [0, 0]], device=device)
    assert kto_kl(TokenLogp(policy), reference, ids, mask, impl=impl).item() == 2.0


def test_no_mismatched_pair_at_all_is_a_reference_point_of_0(impl, device):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP, [[0, 0], [0, 0]], device=device)
    assert kto_kl(TokenLogp(policy), reference, ids, mask, impl=impl).item() == 0


def test_the_reference_point_keeps_no_graph_over_logits(impl, device):
    batch = random_batch(device)
    policy = Logits(batch.logits.requires_grad_())
    z0 = kto_kl(policy, Logits(batch.ref_logits), batch.target_ids, batch.loss_mask, impl=impl)
    assert z0.grad_fn is None


def reference_points(folder: Path, ranks: int) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    log_ratio = [[1.0]] if rank == 0 else [[0.25], [0.25], [0.0]]
    mask = [[1]] if rank == 0 else [[1], [1], [0]]
    policy, reference, ids, loss_mask = token_batch(log_ratio, [[0.0]] * len(log_ratio), mask)
    everyones = kto_kl(TokenLogp(policy), reference, ids, loss_mask)
    own = kto_kl(TokenLogp(policy), reference, ids, loss_mask, group="local")
    (folder / str(rank)).write_text(f"{everyones.item()} {own.item()}")


def test_the_reference_point_is_the_mean_over_all_ranks_unless_asked_to_be_local(tmp_path):
    on_ranks(tmp_path, (reference_points, 2))
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["0.5 1.0", "0.5 0.25"]


@pytest.mark.parametrize("kl", [-0.1, math.nan, math.inf])
def test_a_reference_point_that_cannot_be_is_refused(kl):
    with pytest.raises(ValueError, match="kl: expected a finite number"):
        loss("eager", torch.device("cpu"), [True, False], kl=kl)


@pytest.mark.parametrize("labels", [torch.ones(2), torch.ones(3, dtype=torch.bool)])
def test_labels_that_do_not_fit_are_refused(labels):
    policy, reference, ids, mask = token_batch(LOGP, REF_LOGP)
    with pytest.raises((TypeError, ValueError), match=r"desirable: expected bool \[2\] on cpu, got"):
        kto_loss(TokenLogp(policy), reference, ids, mask, labels, kl=0.0)
