"""What the losses become when the reference is the policy itself, and why a sync moves a policy away from its data."""

import math

import pytest
import torch
from torch import Tensor

from humanline_fused import HumanlineClamp, Logits, TokenLogp, dpo_loss, grpo_loss, kto_loss

V = 5
"""Outcomes; every sequence is one token."""


def logits(seed: int) -> Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(one: Tensor, number: int) -> Tensor:
    """Return the same logits for each of ``number`` sequences of one token, [number, 1, V]."""
    return one.expand(number, 1, V)


def leaf(number: int) -> Tensor:
    return torch.full((number, 1), -1.0, dtype=torch.float64, requires_grad=True)


def one_token(number: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(number, 1, dtype=torch.long), torch.ones(number, 1, dtype=torch.bool)


# With k = 1 and a small step, policy and reference are nearly equal


def test_dpo_against_the_policy_itself_is_plain_dpo_with_a_vanishing_beta():
    def direction(beta: float, reference: Tensor, clamp: HumanlineClamp | None = None) -> Tensor:
        policy = logits(0).requires_grad_()
        ids, mask = torch.tensor([[1], [3]]), torch.ones(2, 1, dtype=torch.bool)
        scores = Logits(rows(policy, 2)), Logits(rows(reference, 2)), ids, mask
        dpo_loss(*scores, beta=beta, clamp=clamp).loss.backward()
        assert policy.grad is not None
        return policy.grad / beta

    synced = direction(0.1, logits(0), HumanlineClamp())
    # The sigmoid's slope at β times a log-ratio of a few nats differs from that at 0 by about β.
    beta = 1e-9
    torch.testing.assert_close(synced, direction(beta, logits(7)), atol=10 * beta, rtol=0.0)
    assert (synced - direction(0.1, logits(7))).abs().max() > 1e-3


def test_all_three_losses_become_linear_in_the_log_probs():
    beta, number = 0.1, 4
    ids, mask = one_token(number)
    reference = TokenLogp(leaf(number).detach())
    desirable = torch.tensor([True, True, False, False])
    sign = torch.where(desirable, 1.0, -1.0).double()[:, None]

    logp = leaf(number)
    dpo_loss(TokenLogp(logp), reference, ids, mask, beta=beta).loss.backward()
    torch.testing.assert_close(logp.grad, -sign * beta / 2 / (number // 2))  # the sigmoid's value at 0

    logp = leaf(number)
    kto_loss(TokenLogp(logp), reference, ids, mask, desirable, kl=0.0, beta=beta).loss.backward()
    torch.testing.assert_close(logp.grad, -sign * beta / 4 / number)  # the sigmoid's slope at 0

    logp = leaf(number)
    grpo_loss(TokenLogp(logp), reference, ids, mask, sign[:, 0]).loss.backward()
    torch.testing.assert_close(logp.grad, -sign / number)


# A prefix where every continuation has the same advantage: the true gradient is 0


def expected_ascent(policy: Tensor, data: Tensor, reference: Tensor, advantage: float) -> Tensor:
    """Return the mean ascent direction of GRPO's logits over data of a distribution, all of one advantage.

    Each outcome stands once, and its probability is a factor of its advantage, in which the loss is linear.
    """
    leaf = policy.clone().requires_grad_()
    ids, mask = torch.arange(V)[:, None], torch.ones(V, 1, dtype=torch.bool)
    scores = Logits(rows(leaf, V)), Logits(rows(reference, V)), ids, mask
    settings = {"epsilon": 1.0, "epsilon_high": 1e6, "clamp": None}
    grpo_loss(*scores, advantage * V * data, **settings).loss.backward()
    assert leaf.grad is not None
    return -leaf.grad


@pytest.mark.parametrize("advantage", [-0.7, 0.7])
def test_a_synced_reference_moves_the_policy_off_data_without_any_advantage(advantage: float):
    policy, data = logits(1), logits(2).softmax(0)
    ascent = expected_ascent(policy, data, policy, advantage)
    torch.testing.assert_close(ascent, advantage * (data - policy.softmax(0)))
    away = -math.copysign(1.0, advantage) * (ascent @ (policy.softmax(0) - data))
    assert away > 0  # a negative advantage pushes away from the data, and the more, the farther they are


@pytest.mark.parametrize("advantage", [-0.7, 0.7])
def test_the_importance_ratio_to_the_source_of_the_data_does_not(advantage: float):
    policy, source = logits(1), logits(2)
    ascent = expected_ascent(policy, source.softmax(0), source, advantage)
    rounding = 10 * V * torch.finfo(torch.float64).eps  # a sum of V terms below 1, computed in a few operations
    torch.testing.assert_close(ascent, torch.zeros(V, dtype=torch.float64), atol=rounding, rtol=0.0)


def test_a_policy_on_its_own_data_does_not_move():
    policy = logits(1)
    ascent = expected_ascent(policy, policy.softmax(0), policy, -0.7)
    rounding = 10 * V * torch.finfo(torch.float64).eps
    torch.testing.assert_close(ascent, torch.zeros(V, dtype=torch.float64), atol=rounding, rtol=0.0)
