"""Work of a head: products with the weight, rows left out of them, and logits in memory."""

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from humanline_fused import LMHead, TokenLogp, token_log_ratio, token_logp, token_logp_and_entropy
from humanline_fused.chunked_head.chunks import Rows, plan
from humanline_fused.validation import values
from tests.head_inputs import HeadBatch, head_batch
from tests.inputs import loss_of

H, V = 16, 37
CPU = torch.device("cpu")


class Products(TorchDispatchMode):
    """Counts the multiplications in products with one factor of the vocabulary's size and one of size H."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplications = 0
        self.largest = 0
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(func.overloadpacket.__name__)
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            a, b = [t for t in args if isinstance(t, Tensor)][-2:]
            sizes = {*a.shape, *b.shape}
            if {H, V} <= sizes:
                self.multiplications += a.shape[0] * a.shape[1] * b.shape[1]
        out = func(*args, **kwargs or {})
        if isinstance(out, Tensor) and out.ndim == 2 and out.shape[1] == V and out.shape[0] != H:
            self.largest = max(self.largest, out.shape[0])
        return out


def units(run: Any, num_rows: int) -> float:
    """Number of products of all rows that count with the weight."""
    with Products() as products:
        run()
    return products.multiplications / (num_rows * H * V)


def counted(batch: HeadBatch) -> int:
    return int(batch.tokens.loss_mask.sum())


def policy_of(batch: HeadBatch, frozen: bool = False, **options: Any) -> LMHead:
    return LMHead(batch.hidden.requires_grad_(), batch.weight.requires_grad_(not frozen), **options)


GIVEN = TokenLogp(torch.full((4, 6), -4.0))
WORKSPACES = [40 * 4 * 14, None]
"""Several chunks of whole pairs, and one; products of 4-byte numbers."""


@pytest.mark.parametrize("workspace_bytes", WORKSPACES)
@pytest.mark.parametrize(("frozen", "expected"), [(False, 3), (True, 2)])
def test_a_loss_is_three_products_and_with_a_frozen_head_two(objective, impl, frozen, expected, workspace_bytes):
    batch = head_batch(CPU, H=H, V=V, bias=False)
    policy = policy_of(batch, frozen, workspace_bytes=workspace_bytes)

    def run() -> None:
        loss_of(objective, policy, GIVEN, batch.tokens, impl=impl).loss.backward()

    assert units(run, counted(batch)) == expected


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("frozen", "expected"), [(False, 4), (True, 3)])
def test_a_reference_inside_is_one_more(objective, frozen, expected, shared):
    batch = head_batch(CPU, H=H, V=V, bias=False)
    policy = policy_of(batch, frozen)
    reference = LMHead(batch.ref_hidden, policy.weight if shared else batch.ref_weight)

    def run() -> None:
        loss_of(objective, policy, reference, batch.tokens).loss.backward()

    assert units(run, counted(batch)) == expected


def test_policy_and_reference_with_one_weight_are_one_product(objective):
    batch = head_batch(CPU, H=H, V=V, bias=False)
    with torch.no_grad(), Products() as products:
        policy = policy_of(batch)
        loss_of(objective, policy, LMHead(batch.ref_hidden, policy.weight), batch.tokens)
    assert sum(name in ("mm", "addmm") for name in products.calls) == 1


@pytest.mark.parametrize(("frozen", "expected"), [(False, 4), (True, 2)])
def test_a_user_defined_loss_is_four_products_and_with_a_frozen_head_two(frozen, expected):
    batch = head_batch(CPU, H=H, V=V, bias=False)
    ids, mask = batch.tokens.target_ids, batch.tokens.loss_mask
    policy = policy_of(batch, frozen)
    assert units(lambda: token_logp(policy, ids, mask).square().sum().backward(), counted(batch)) == expected
    ratio = lambda: token_log_ratio(policy, GIVEN, ids, mask).log_ratio.square().sum().backward()  # noqa: E731
    assert units(ratio, counted(batch)) == expected


def test_an_entropy_is_four_and_with_a_frozen_head_three():
    batch = head_batch(CPU, H=H, V=V, bias=False)
    for frozen, expected in ((False, 4), (True, 3)):
        policy = policy_of(batch, frozen)

        def run(policy: LMHead = policy) -> None:
            out = token_logp_and_entropy(policy, batch.tokens.target_ids, batch.tokens.loss_mask)
            (out.logp + out.entropy).sum().backward()

        assert units(run, counted(batch)) == expected


def test_evaluation_is_one_product(objective, impl):
    batch = head_batch(CPU, H=H, V=V, bias=False)
    with torch.no_grad():
        policy = policy_of(batch)
        assert units(lambda: loss_of(objective, policy, GIVEN, batch.tokens, impl=impl), counted(batch)) == 1


def test_a_frozen_body_under_a_trained_head_pays_for_no_gradient_of_its_own(objective):
    batch = head_batch(CPU, H=H, V=V, bias=False)
    policy = LMHead(batch.hidden, batch.weight.requires_grad_())
    assert units(lambda: loss_of(objective, policy, GIVEN, batch.tokens).loss.backward(), counted(batch)) == 2


@pytest.mark.parametrize("workspace_bytes", WORKSPACES)
@pytest.mark.parametrize("frozen", [False, True])
def test_rows_without_an_advantage_leave_the_backward_products(frozen, workspace_bytes):
    batch = head_batch(CPU, H=H, V=V, bias=False)
    batch.tokens.advantages[1] = 0
    policy = policy_of(batch, frozen, workspace_bytes=workspace_bytes)

    def run() -> None:
        loss_of("grpo", policy, GIVEN, batch.tokens, beta=0.0).loss.backward()

    without = int(batch.tokens.loss_mask[1].sum())
    assert without > 0
    rows = counted(batch) + (1 if frozen else 2) * (counted(batch) - without)
    assert units(run, 1) == rows


@pytest.mark.parametrize("workspace_bytes", WORKSPACES)
def test_clamped_rows_leave_the_backward_products_if_asked_to(objective, workspace_bytes):
    batch = head_batch(CPU, H=H, V=V, bias=False)
    logp = token_logp(LMHead(batch.hidden, batch.weight), batch.tokens.target_ids, batch.tokens.loss_mask)
    shift = torch.where(torch.arange(logp.numel()).view_as(logp) % 3 == 0, 3.0, 0.0)  # every third beyond the bound
    reference = TokenLogp(logp.detach() - shift)
    policy = policy_of(batch, drop_clamped=True, workspace_bytes=workspace_bytes)
    clamped = int((batch.tokens.loss_mask & (shift > 0)).sum())

    def run() -> None:
        settings = {"beta": 0.0} if objective == "grpo" else {}
        loss_of(objective, policy, reference, batch.tokens, **settings).loss.backward()

    left = counted(batch) - clamped
    assert clamped > 0
    assert units(run, 1) == counted(batch) + 2 * left


def test_a_pair_longer_than_the_workspace_computes_its_logits_twice():
    batch = head_batch(CPU, H=H, V=V, bias=False)
    policy = policy_of(batch, workspace_bytes=40 * 4 * 2)
    assert units(lambda: loss_of("dpo", policy, GIVEN, batch.tokens).loss.backward(), counted(batch)) == 4


def test_chunks_are_as_large_as_the_workspace_and_whole_pairs_only_for_the_weight():
    batch = head_batch(CPU, B=8, H=H, V=V, bias=False)
    row = 40 * 4
    for frozen in (False, True):
        policy = policy_of(batch, frozen, workspace_bytes=17 * row)
        with Products() as products:
            loss_of("dpo", policy, TokenLogp(torch.full((8, 6), -4.0)), batch.tokens).loss.backward()
        assert 0 < products.largest <= 17


@pytest.mark.parametrize(
    ("of_reference", "without_gradient", "blocks", "expected"),
    [
        (44, 0, [400], [[(0, 44)], [(44, 300), (300, 444)]]),  # a block of several chunks takes no row before it
        (100, 0, [150, 50], [[(0, 300)]]),
        (101, 0, [150, 50], [[(0, 101)], [(101, 301)]]),
        (0, 0, [200, 100, 100, 100], [[(0, 300)], [(300, 500)]]),
        (0, 200, None, [[(0, 200)], [(200, 500)]]),
    ],
)
def test_chunks_hold_whole_blocks_and_all_rows_before_them_or_none(of_reference, without_gradient, blocks, expected):
    rows = Rows(torch.arange(sum(blocks or [500])), without_gradient, blocks)
    assert plan(of_reference, rows, capacity=300) == expected


def test_with_rows_given_nothing_is_read_on_the_host(objective, impl, monkeypatch):
    batch = head_batch(CPU, H=H, V=V, bias=False)
    policy = policy_of(batch, rows=batch.tokens.loss_mask.flatten().nonzero()[:, 0])
    monkeypatch.setattr(values, "may_look_at", lambda tensor: False)  # as on a GPU
    for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, mock.Mock(side_effect=AssertionError(f"Tensor.{name} waits")))
    loss_of(objective, policy, GIVEN, batch.tokens, impl=impl).loss.backward()


def test_no_logits_but_a_chunk_s_are_ever_held(objective):
    batch = head_batch(CPU, B=8, T=20, H=H, V=V, bias=False)
    policy = policy_of(batch, workspace_bytes=40 * 4 * 45)
    with Products() as products:
        reference = LMHead(batch.ref_hidden, batch.ref_weight, workspace_bytes=40 * 4 * 45)
        loss_of(objective, policy, reference, batch.tokens).loss.backward()
    assert 0 < products.largest <= 45
    assert counted(batch) > 2 * 45


def test_masked_rows_may_hold_anything(objective, impl):
    batch = head_batch(CPU, H=H, V=V, bias=False)
    poison = batch.hidden.masked_fill(~batch.tokens.loss_mask[..., None], torch.nan)
    clean = loss_of(objective, policy_of(batch), GIVEN, batch.tokens, impl=impl).loss
    poisoned = replace(batch, hidden=poison)
    loss = loss_of(objective, policy_of(poisoned), GIVEN, batch.tokens, impl=impl).loss
    loss.backward()
    assert torch.equal(loss, clean)
    assert poisoned.hidden.grad is not None
    assert poisoned.hidden.grad.isfinite().all()
