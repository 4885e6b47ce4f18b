"""A head with its vocabulary split among processes gives the results of the whole head (gloo, on a CPU)."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor

from humanline_fused import LMHead, TokenLogp, token_logp, token_logp_and_entropy
from tests.head_inputs import HeadBatch, head_batch
from tests.inputs import loss_of
from tests.ranks import on_ranks

V = 37
OBJECTIVES = ("dpo", "kto", "grpo")
POISONS = {"nan": (math.nan, 0), "inf": (math.inf, 0), "illegal id": (1.0, V)}
"""First number of a row's hidden states, under a head of positive numbers, and its target id."""
SOFTMAX: dict[str, Any] = {"temperature": 0.7, "softcap": 6.0, "scale": 1.1}
CASES = [
    (objective, frozen, workspace, softmax)
    for objective in OBJECTIVES
    for frozen, workspace, softmax in (
        *((False, None, {}), (False, 1, SOFTMAX)),
        *((True, 1, {}), (True, 8 * V * 14, SOFTMAX)),
    )
]


def answers(
    batch: HeadBatch, group: Any, part: slice, case: tuple[str, bool, int | None, dict[str, Any]]
) -> list[Tensor]:
    """Return loss, log-probs and gradients of hidden, weight and bias, from this part of the vocabulary."""
    objective, frozen, workspace_bytes, softmax = case
    assert batch.bias is not None
    hidden = batch.hidden.clone().requires_grad_()
    weight, bias = (t[part].clone().requires_grad_(not frozen) for t in (batch.weight, batch.bias))
    options = {"group": group, "workspace_bytes": workspace_bytes, **softmax}
    policy = LMHead(hidden, weight, bias, **options)
    reference = LMHead(batch.ref_hidden, batch.ref_weight[part], batch.bias[part], **options)
    out = loss_of(objective, policy, reference, batch.tokens)
    out.loss.backward()
    gradients = [torch.zeros(0) if t.grad is None else t.grad for t in (hidden, weight, bias)]
    return [out.loss.detach(), out.logp, out.ref_logp, *gradients]


def padded(batch: HeadBatch) -> HeadBatch:
    """Return a bias of -inf outside the first of three parts, as for ids that no tokenizer has."""
    assert batch.bias is not None
    real = part_of(1, 3).start
    tokens = replace(batch.tokens, target_ids=batch.tokens.target_ids % real)
    return replace(batch, tokens=tokens, bias=batch.bias.index_fill(0, torch.arange(real, V), -torch.inf))


def entropies(batch: HeadBatch, group: Any, part: slice) -> list[Tensor]:
    assert batch.bias is not None
    leaves = [batch.hidden.clone(), batch.weight[part].clone(), batch.bias[part].clone()]
    head = LMHead(*(leaf.requires_grad_() for leaf in leaves), group=group, workspace_bytes=8 * V * 5)
    out = token_logp_and_entropy(head, batch.tokens.target_ids, batch.tokens.loss_mask)
    gradients = torch.autograd.grad((out.logp + 2 * out.entropy).sum(), leaves)
    return [out.logp.detach(), out.entropy.detach(), *gradients]


def part_of(rank: int, world_size: int) -> slice:
    """Return a part of the vocabulary as torch.chunk splits it: the last part is smaller."""
    size = -(-V // world_size)
    return slice(rank * size, min((rank + 1) * size, V))


def score(folder: Path, world_size: int) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    batch, part = head_batch("cpu").to(torch.float64), part_of(rank, world_size)
    group = torch.distributed.group.WORLD
    results: dict[str, Any] = {str(i): answers(batch, group, part, case) for i, case in enumerate(CASES)}
    results["entropy"] = entropies(batch, group, part)
    results["padded"] = entropies(padded(batch), group, part)
    offset = head_batch("cpu", bias=True)
    assert offset.bias is not None
    shifted = LMHead(offset.hidden, offset.weight[part], offset.bias[part] + 1000, group=group)
    results["offset"] = token_logp(shifted, offset.tokens.target_ids, offset.tokens.loss_mask)
    illegal = offset.tokens.target_ids.clone()
    illegal[0, 0] = V
    everyone = torch.ones_like(offset.tokens.loss_mask)
    results["illegal"] = token_logp(LMHead(offset.hidden, offset.weight[part], group=group), illegal, everyone)
    for poison, (number, target_id) in POISONS.items():
        hidden, ids = offset.hidden.clone(), offset.tokens.target_ids.clone()
        hidden[0, 0, 0], ids[0, 0] = number, target_id
        out = token_logp_and_entropy(LMHead(hidden, offset.weight.abs()[part], group=group), ids, everyone)
        results[poison] = torch.stack([out.logp, out.entropy])
    torch.save(results, folder / f"{world_size}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(folder, (score, 2), (score, 3))
    return folder


@pytest.fixture(params=[2, 3])
def runs(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    """Results of every rank."""
    return [torch.load(folder / f"{request.param}-{rank}.pt") for rank in range(request.param)]


def assert_same(got: list[Tensor], expected: list[Tensor], part: slice, first_of_head: int) -> None:
    """Assert that a rank has the whole results, and its part of the head's gradients."""
    for i, (actual, whole) in enumerate(zip(got, expected, strict=True)):
        whole = whole[part] if i >= first_of_head and len(whole) else whole
        # float64: sums in another order, over at most 37 terms of the result's size.
        bound = 37 * torch.finfo(torch.float64).eps * max(1.0, whole.abs().max().item() if whole.numel() else 0.0)
        torch.testing.assert_close(actual, whole, rtol=0, atol=bound)


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: "-".join(map(str, CASES[i][:3])))
def test_every_rank_gets_the_whole_loss_and_its_part_of_the_gradient(runs: list[dict[str, Any]], i: int) -> None:
    expected = answers(head_batch("cpu").to(torch.float64), None, slice(None), CASES[i])
    for rank, results in enumerate(runs):
        assert_same(results[str(i)], expected, part_of(rank, len(runs)), first_of_head=4)


def test_an_entropy_and_its_gradient_are_those_of_the_whole_vocabulary(runs: list[dict[str, Any]]) -> None:
    expected = entropies(head_batch("cpu").to(torch.float64), None, slice(None))
    for rank, results in enumerate(runs):
        assert_same(results["entropy"], expected, part_of(rank, len(runs)), first_of_head=3)


def test_a_part_whose_logits_are_all_masked_has_no_probability_and_no_gradient(runs: list[dict[str, Any]]) -> None:
    expected = entropies(padded(head_batch("cpu").to(torch.float64)), None, slice(None))
    assert all(t.isfinite().all() for t in expected)
    for rank, results in enumerate(runs):
        assert_same(results["padded"], expected, part_of(rank, len(runs)), first_of_head=3)


def test_every_rank_gets_the_same_bits(runs: list[dict[str, Any]]) -> None:
    for i in range(len(CASES)):
        for results in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[str(i)][:4], runs[0][str(i)][:4], strict=True))


def test_an_offset_of_all_logits_takes_no_digits(runs: list[dict[str, Any]]) -> None:
    batch = head_batch("cpu")
    assert batch.bias is not None
    ids, mask = batch.tokens.target_ids, batch.tokens.loss_mask
    shifted = (batch.hidden.flatten(0, 1) @ batch.weight.T + (batch.bias + 1000)).view(*ids.shape, V)
    expected = shifted.double().log_softmax(-1).gather(-1, ids[..., None])[..., 0].where(mask, 0.0)
    own = (token_logp(LMHead(batch.hidden, batch.weight, batch.bias + 1000), ids, mask).double() - expected).abs().max()
    for results in runs:
        # Logits of 1000 are rounded to 3e-5 (half an ulp) before scoring.
        assert (results["offset"].double() - expected).abs().max() <= own + 1000 * torch.finfo(torch.float32).eps


def test_an_id_of_no_rank_gives_a_nan_row(runs: list[dict[str, Any]]) -> None:
    for results in runs:
        assert results["illegal"][0, 0].isnan()
        assert results["illegal"].isnan().sum() == 1


@pytest.mark.parametrize("poison", POISONS)
def test_a_row_without_a_log_prob_has_no_entropy(runs: list[dict[str, Any]], poison: str) -> None:
    for results in runs:
        assert results[poison][:, 0, 0].isnan().all()
        assert results[poison].isnan().sum() == 2


def test_a_reference_that_was_scored_elsewhere_stands_beside_it(runs: list[dict[str, Any]]) -> None:
    batch = head_batch("cpu").to(torch.float64)
    expected = answers(batch, None, slice(None), CASES[0])
    reference = TokenLogp(runs[0]["0"][2])
    policy = LMHead(batch.hidden, batch.weight, batch.bias)
    loss = loss_of("dpo", policy, reference, batch.tokens).loss
    torch.testing.assert_close(loss, expected[0])
