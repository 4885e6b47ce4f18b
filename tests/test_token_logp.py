"""token_logp: logits -> log-prob of each target (docs/math.md, equations 1 and 13)."""

import importlib
import math

import pytest
import torch

from humanline_fused import LMHead, Logits, TokenLogp, token_logp
from humanline_fused.types import Impl
from tests.error_budget import PER_NAT, assert_within_budget
from tests.inputs import random_batch

ONE = torch.ones(1, 1, dtype=torch.bool)


def score(logits: torch.Tensor, target: int, impl: Impl) -> torch.Tensor:
    ids = torch.tensor([[target]], device=logits.device)
    return token_logp(Logits(logits[None, None]), ids, ONE.to(logits.device), impl=impl)[0, 0]


# Value


@pytest.mark.parametrize("target", [0, 1, 2])
def test_probabilities_of_a_half_a_third_a_sixth_are_read_back(device, impl, target):
    probabilities = [1 / 2, 1 / 3, 1 / 6]
    logits = torch.tensor(probabilities, device=device).log() + 7
    assert score(logits, target, impl).item() == pytest.approx(math.log(probabilities[target]), rel=1e-6)


def test_given_log_probs_pass_through(device, impl):
    logp = torch.randn(2, 3, device=device)
    mask = torch.tensor([[True, False, True], [False, True, True]], device=device)
    out = token_logp(TokenLogp(logp), torch.zeros(2, 3, dtype=torch.long, device=device), mask, impl=impl)
    assert torch.equal(out, logp * mask)


def test_given_log_probs_are_float32_or_float64_and_masked_ones_are_never_read(device):
    mask = torch.tensor([[True, False]], device=device)
    for given, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        logp = torch.tensor([[-0.1, math.nan]], dtype=given, device=device)
        out = token_logp(TokenLogp(logp), torch.zeros(1, 2, dtype=torch.long, device=device), mask)
        assert out.dtype == expected
        assert out.tolist() == [[logp[0, 0].item(), 0.0]]


def test_eager_is_torch_s_log_softmax_in_float64(device):
    batch = random_batch(device, dtype=torch.float64)
    logp = token_logp(Logits(batch.logits), batch.target_ids, batch.loss_mask)
    expected = batch.logits.log_softmax(-1).gather(-1, batch.target_ids[..., None])[..., 0] * batch.loss_mask
    # 8 epsilons are one unit in the last place of a log-prob between −16 and −8.
    torch.testing.assert_close(logp, expected, rtol=0, atol=8 * torch.finfo(torch.float64).eps)


@pytest.mark.parametrize("of_a_head", [False, True])
def test_a_temperature_per_token_keeps_the_digits_of_float64(of_a_head):
    batch, weight = random_batch(torch.device("cpu"), dtype=torch.float64), torch.eye(37, dtype=torch.float64)
    results = []
    for temperature in (0.7, torch.full(batch.target_ids.shape, 0.7, dtype=torch.float64)):
        softmax = {"temperature": temperature}
        scores = LMHead(batch.logits, weight, **softmax) if of_a_head else Logits(batch.logits, **softmax)
        results.append(token_logp(scores, batch.target_ids, batch.loss_mask))
    torch.testing.assert_close(*results, rtol=16 * torch.finfo(torch.float64).eps, atol=0)


def test_eager_gives_the_same_bits_in_chunks_of_any_size(device, monkeypatch):
    from humanline_fused.eager import token_logp as chunked

    batch = random_batch(device)
    results = []
    for size in (1, 2 * 37 * 4, 2**20):
        monkeypatch.setitem(importlib.import_module("humanline_fused.eager.token_logp").CHUNK_BYTES, device.type, size)
        leaf = batch.logits.clone().requires_grad_()
        logp, *_ = chunked(leaf, None, batch.target_ids, batch.loss_mask)
        logp.pow(2).sum().backward()
        results.append((logp.detach(), leaf.grad))
    assert all(torch.equal(logp, results[0][0]) and torch.equal(grad, results[0][1]) for logp, grad in results[1:])


# Gradient


def test_the_gradient_is_one_hot_minus_softmax(device, impl):
    logits = torch.tensor([1 / 2, 1 / 3, 1 / 6], device=device).log().requires_grad_()
    score(logits, 1, impl).backward()
    expected = torch.tensor([-1 / 2, 2 / 3, -1 / 6], device=device)
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 1024.0])
def test_a_certain_target_keeps_the_digits_of_its_small_gradient(device, impl, dtype, offset):
    logits = torch.tensor([12.0, 0.0, 0.0], device=device, dtype=dtype) + offset
    gap = (logits[0] - logits[1]).item()
    logits.requires_grad_()
    score(logits, 0, impl).backward()
    exact = 2 / (math.exp(gap) + 2)
    budget = PER_NAT  # 1 − p, with p an exponential of a log-prob
    assert abs(logits.grad[0].item() - exact) <= budget + torch.finfo(dtype).eps * exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_dlogp_per_token_gives_the_oracle_s_dlogits(device, dtype):
    batch = random_batch(device, dtype=dtype)
    dlogp = torch.randn(batch.target_ids.shape, generator=torch.Generator().manual_seed(3)).to(device)
    gradients = []
    runs: list[tuple[torch.Tensor, Impl]] = [
        (batch.logits, "triton"),
        (batch.logits, "eager"),
        (batch.logits.double(), "eager"),
    ]
    for logits, impl in runs:
        leaf = logits.clone().requires_grad_()
        token_logp(Logits(leaf), batch.target_ids, batch.loss_mask, impl=impl).backward(dlogp.to(leaf.dtype).float())
        gradients.append(leaf.grad)
    actual, eager, oracle = gradients
    assert_within_budget(actual, eager, oracle, "dlogits", unit=dlogp.abs().max().item())


def test_sum_backward_hands_a_stride_0_gradient_on(device, impl):
    batch = random_batch(device)
    gradients = []
    for weights in (None, torch.ones(batch.target_ids.shape, device=device)):
        leaf = batch.logits.clone().requires_grad_()
        logp = token_logp(Logits(leaf), batch.target_ids, batch.loss_mask, impl=impl)
        logp.sum().backward() if weights is None else logp.backward(weights)
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_dlogits_is_written_to_the_last_element_of_a_poisoned_allocation(device):
    batch = random_batch(device, B=3, T=3, V=37)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives with NaN
    try:
        leaf = batch.logits.requires_grad_()
        token_logp(Logits(leaf), batch.target_ids, batch.loss_mask, impl="triton").sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert not leaf.grad.isnan().any()


# Extremes


def test_a_target_of_minus_infinity_is_minus_infinity(device, impl):
    assert score(torch.tensor([0.0, -math.inf, 0.0], device=device), 1, impl) == -math.inf


def test_a_row_of_minus_infinity_is_nan(device, impl):
    assert score(torch.full((3,), -math.inf, device=device), 1, impl).isnan()


def test_one_finite_logit_after_tiles_of_minus_infinity_is_certain(device, impl):
    logits = torch.full((9001,), -math.inf, device=device)
    logits[9000] = 3.0
    assert score(logits, 9000, impl).item() == pytest.approx(0, abs=torch.finfo(torch.float32).eps)
    assert score(logits, 4, impl) == -math.inf


def test_masking_with_the_dtype_s_lowest_number_is_as_good_as_minus_infinity(device, impl):
    logits = torch.full((9001,), torch.finfo(torch.float32).min, device=device)
    logits[8000:8002] = 1.0
    assert score(logits, 8001, impl).item() == pytest.approx(-math.log(2), rel=1e-6)


def test_log_probs_never_exceed_0(device, impl):
    logits = torch.zeros(1, 64, 5, device=device)
    logits[..., 2] = torch.linspace(15, 100, 64, device=device)
    ids, mask = torch.full((1, 64), 2, device=device), torch.ones(1, 64, dtype=torch.bool, device=device)
    assert (token_logp(Logits(logits), ids, mask, impl=impl) <= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_the_dtype_s_lowest_number_is_uniform(device, impl, dtype):
    logits = torch.full((9001,), torch.finfo(dtype).min, dtype=dtype, device=device)
    assert score(logits, 8001, impl).item() == pytest.approx(-math.log(9001), rel=1e-6)


def test_a_row_whose_dlogp_is_0_is_not_read_in_backward(device):
    from humanline_kernels.token_logp import token_logp_backward

    logits = torch.full((1, 2, 40), math.nan, device=device)
    ids, mask = torch.zeros(1, 2, dtype=torch.long, device=device), torch.ones(1, 2, dtype=torch.bool, device=device)
    zeros = torch.zeros(1, 2, device=device)
    assert (token_logp_backward(zeros, None, logits, ids, mask, None, zeros, zeros, None, 1.0, None, 1.0) == 0).all()


@pytest.mark.parametrize("illegal", [-1, 37, 2**40])
def test_an_illegal_id_past_validation_gives_a_nan_row_and_no_read_outside_it(device, impl, illegal):
    if impl == "eager":
        from humanline_fused.eager import token_logp as unchecked
    else:
        from humanline_fused.autograd import token_logp as unchecked
    batch = random_batch(device)
    mask = torch.ones_like(batch.loss_mask)
    batch.target_ids[1, 2] = illegal
    leaf = batch.logits.requires_grad_()
    logp, *_ = unchecked(leaf, None, batch.target_ids, mask)
    expected = torch.zeros_like(mask)
    expected[1, 2] = True
    assert torch.equal(logp.isnan(), expected)
    logp.sum().backward()
    assert torch.equal(leaf.grad.isnan().all(-1), expected)
    assert torch.equal(leaf.grad.isnan().any(-1), expected)


# Index width


def test_int32_ids_and_int64_ids_give_the_same_bits(device, impl):
    batch = random_batch(device)
    logits = Logits(batch.logits)
    wide = token_logp(logits, batch.target_ids, batch.loss_mask, impl=impl)
    narrow = token_logp(logits, batch.target_ids.int(), batch.loss_mask, impl=impl)
    assert torch.equal(wide, narrow)


def test_a_stride_beyond_32_bits_is_addressed(device, impl):
    # Two rows 2^32 bytes apart, in memory that is reserved but untouched except for these rows.
    storage = torch.empty(2**31 + 64, dtype=torch.bfloat16, device=device)
    logits = storage.as_strided((1, 2, 8), (0, 2**31, 1))
    logits.copy_(torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(0)).to(device))
    ids, mask = torch.tensor([[3, 5]], device=device), torch.ones(1, 2, dtype=torch.bool, device=device)
    near = token_logp(Logits(logits.contiguous()), ids, mask, impl=impl)
    assert torch.equal(token_logp(Logits(logits), ids, mask, impl=impl), near)


# Invariance


def test_the_rows_of_a_batch_do_not_affect_each_other(device, impl):
    batch = random_batch(device, V=64)
    mask = torch.ones_like(batch.loss_mask)
    whole = token_logp(Logits(batch.logits), batch.target_ids, mask, impl=impl)
    alone = token_logp(Logits(batch.logits[2:3, 1:2]), batch.target_ids[2:3, 1:2], mask[2:3, 1:2], impl=impl)
    assert torch.equal(whole[2:3, 1:2], alone)
