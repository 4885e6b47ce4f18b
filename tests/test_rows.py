"""Properties of rows common to all three losses: masks, extreme values, memory layout and index width."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from humanline_fused import Logits, TokenLogp, token_logp
from humanline_fused.validation import scores
from tests.inputs import FORMS, Batch, loss_and_gradient, loss_of, random_batch
from tests.oracle import assert_matches_oracle

# Mask


def test_what_stands_in_a_masked_row_is_never_read__oracle_b(device, objective, impl):
    batch = random_batch(device)
    expected, expected_gradient = loss_and_gradient(objective, batch, impl=impl)
    masked = ~batch.loss_mask
    for poison in (math.nan, math.inf):
        batch.logits[masked] = poison
        batch.ref_logits[masked] = poison
        batch.target_ids[masked] = -100
        out, gradient = loss_and_gradient(objective, batch, impl=impl)
        assert all(torch.equal(out[name], expected[name]) for name in out)
        assert torch.equal(gradient, expected_gradient)
        assert (gradient[masked] == 0).all()


def test_a_poisoned_token_logp_under_the_mask_is_never_read(device, objective, impl):
    batch = random_batch(device)
    logp = token_logp(Logits(batch.logits), batch.target_ids, batch.loss_mask)
    ref_logp = token_logp(Logits(batch.ref_logits), batch.target_ids, batch.loss_mask)
    losses, gradients = [], []
    for filling in (0.0, math.nan):
        policy = logp.where(batch.loss_mask, filling).requires_grad_()
        reference = TokenLogp(ref_logp.where(batch.loss_mask, filling))
        losses.append(loss_of(objective, TokenLogp(policy), reference, batch, impl=impl).loss)
        gradients += torch.autograd.grad(losses[-1], policy)
    assert torch.equal(*losses)
    assert torch.equal(*gradients)


def test_padding_contributes_nothing__oracle_b(device, objective, impl):
    batch = random_batch(device)
    out, gradient = loss_and_gradient(objective, batch, impl=impl)
    pad = torch.nn.functional.pad
    padded = Batch(
        logits=pad(batch.logits, (0, 0, 0, 3), value=math.nan),
        ref_logits=pad(batch.ref_logits, (0, 0, 0, 3), value=math.nan),
        target_ids=pad(batch.target_ids, (0, 3), value=-100),
        loss_mask=pad(batch.loss_mask, (0, 3)),
        desirable=batch.desirable,
        advantages=batch.advantages,
    )
    padded_out, padded_gradient = loss_and_gradient(objective, padded, impl=impl)
    torch.testing.assert_close(padded_out["loss"], out["loss"])
    torch.testing.assert_close(padded_gradient[:, :5], gradient)
    assert (padded_gradient[:, 5:] == 0).all()


def test_a_mask_without_any_true_gives_loss_0_with_a_graph_and_zero_gradients(device, objective, impl):
    batch = random_batch(device)
    batch.loss_mask[:] = False
    out, gradient = loss_and_gradient(objective, batch, impl=impl)
    assert out["loss"] == 0
    assert (gradient == 0).all()
    assert not any(value.isnan().any() for value in out.values())


@pytest.mark.parametrize("shape", [(0, 5), (4, 0)])
def test_an_empty_batch_gives_loss_0_with_a_graph(device, objective, impl, shape):
    batch = random_batch(device, *shape)
    out, gradient = loss_and_gradient(objective, batch, impl=impl)
    assert out["loss"] == 0
    assert gradient.shape == batch.logits.shape


def test_a_sequence_without_tokens_leaves_the_mean(device, objective, impl):
    batch = random_batch(device, B=4)
    batch.loss_mask[1] = batch.loss_mask[3] = False
    out, _ = loss_and_gradient(objective, batch, impl=impl)
    rest = Batch(*(value[::2] for value in vars(batch).values()))
    expected, _ = loss_and_gradient(objective, rest, impl=impl)
    torch.testing.assert_close(out["loss"], expected["loss"])


# Extremes


def test_minus_infinity_logits_are_legal_where_they_are_not_the_target(device, objective):
    batch = random_batch(device, V=37)
    forbidden = torch.zeros(37, dtype=torch.bool, device=device)
    forbidden[:20] = True
    batch.target_ids.clamp_(min=20)
    batch.logits[..., forbidden] = -math.inf
    batch.ref_logits[..., forbidden] = -math.inf
    assert_matches_oracle(objective, batch)
    _, gradient = loss_and_gradient(objective, batch, impl="triton")
    assert (gradient[..., forbidden] == 0).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_nan_or_infinity_in_a_row_that_counts_is_visible_in_loss_and_gradient(device, objective, impl, poison, beta):
    batch = random_batch(device)
    batch.loss_mask[0, 0] = True
    batch.target_ids[0, 0] = 1
    batch.logits[0, 0, 3] = poison
    settings = {"beta": beta} if objective == "grpo" else {}
    out, gradient = loss_and_gradient(objective, batch, impl=impl, **settings)
    assert out["loss"].isnan()
    assert out["logp"][0, 0].isnan()
    assert out["logp"].isnan().sum() == 1
    assert gradient[0, 0].isnan().all()


def test_an_illegal_id_past_validation_poisons_loss_and_gradient(device, objective, impl, monkeypatch):
    batch = random_batch(device)
    batch.loss_mask[1, 2], batch.target_ids[1, 2] = True, 37
    monkeypatch.setattr(scores, "_check_ids", lambda *_: None)  # as on a GPU, where a check would wait for the device
    out, gradient = loss_and_gradient(objective, batch, impl=impl)
    assert out["loss"].isnan()
    assert gradient[1, 2].isnan().all()


@pytest.mark.parametrize("offset", [1000.0, -1000.0])
def test_an_offset_of_1000_stays_within_the_budget(device, objective, offset):
    batch = random_batch(device)
    batch.logits.add_(offset)
    batch.ref_logits.add_(offset)
    assert_matches_oracle(objective, batch)


def test_a_spike_beyond_the_optimistic_point_is_read_again(device, objective):
    batch = random_batch(device, B=2, T=2, V=9001)
    batch.target_ids[:] = 5
    batch.logits[..., 7000] = batch.ref_logits[..., 7000] = 500.0
    assert_matches_oracle(objective, batch)


# Layout


def test_transposed_log_probs_give_the_contiguous_answer(device, objective, impl):
    batch = random_batch(device)
    mask = batch.loss_mask
    logp = token_logp(Logits(batch.logits), batch.target_ids, mask)
    ref_logp = token_logp(Logits(batch.ref_logits), batch.target_ids, mask)
    turned = replace(batch, loss_mask=mask.T.contiguous().T)
    policy, reference = (TokenLogp(scores.T.contiguous().T) for scores in (logp, ref_logp))
    expected = loss_of(objective, TokenLogp(logp), TokenLogp(ref_logp), batch, impl=impl).loss
    torch.testing.assert_close(loss_of(objective, policy, reference, turned, impl=impl).loss, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a dlogits of 8 GiB, row by row: no interpreter does that")
@pytest.mark.parametrize(("objective", "form"), FORMS)
def test_more_than_65535_rows_and_two_to_the_32_elements_are_addressed(device, objective, form):
    T, V = 2**15 + 8, 2**16
    row = torch.randn(V, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    logits = row.expand(2, T, V).requires_grad_()
    mask = torch.zeros(2, T, dtype=torch.bool, device=device)
    mask[:, -1] = True
    ids = torch.full((2, T), 5, device=device)
    labels, weights = torch.tensor([True, False], device=device), torch.ones(2, device=device)
    whole = Batch(logits, logits, ids, mask, labels, weights)
    last = Batch(logits[:, -1:], logits[:, -1:], ids[:, -1:], mask[:, -1:], labels, weights)
    gradients = []
    for batch in (whole, last):
        reference = TokenLogp(torch.zeros(batch.target_ids.shape, device=device))
        leaf = batch.logits.detach().requires_grad_()
        loss = loss_of(objective, Logits(leaf), reference, batch, clamp=None, impl="triton", **form).loss
        gradients += torch.autograd.grad(loss, leaf)
    assert torch.equal(gradients[0][:, -1], gradients[1][:, 0])
    assert not gradients[0][:, 0].any()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    V=st.integers(2, 70),
    before=st.integers(0, 9),
    after=st.integers(0, 9),
    tokens_first=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**16),
)
def test_rows_may_begin_anywhere_and_lie_as_far_apart_as_they_like(
    device, objective, V, before, after, tokens_first, dtype, seed
):
    def lay_out(logits):
        wide = torch.nn.functional.pad(logits, (before, after), value=math.nan)
        if tokens_first:
            wide = wide.transpose(0, 1).contiguous().transpose(0, 1)
        return wide[..., before : before + V]

    assert_matches_oracle(objective, random_batch(device, 2, 3, V, dtype=dtype, seed=seed), lay_out=lay_out)


@pytest.mark.parametrize("first", range(9))
@pytest.mark.parametrize("V", [13, 16])
def test_rows_of_dlogits_are_aligned_as_those_of_logits_in_foreign_memory_too(first, V):
    from humanline_kernels.dlogits import empty_dlogits

    memory = torch.empty(9 + 2 * 3 * 20, dtype=torch.bfloat16)[first:]
    logits = torch.from_dlpack(memory).as_strided((2, 3, V), (60, 20, 1))  # loses the offset in its storage
    dlogits = empty_dlogits(logits, logits.data_ptr())
    for b, t in [(0, 0), (0, 1), (1, 2)]:
        assert (dlogits[b, t].data_ptr() - logits[b, t].data_ptr()) % 16 == 0


@pytest.mark.parametrize("V", [8, 13])
def test_dlogits_is_contiguous_where_the_logits_are(device, V):
    batch = random_batch(device, V=V)
    _, gradient = loss_and_gradient("dpo", batch, impl="triton")
    assert gradient.is_contiguous()


def test_strided_views_give_the_contiguous_answer(device, objective, impl):
    batch = random_batch(device, V=32)
    expected, expected_gradient = loss_and_gradient(objective, batch, impl=impl)
    wide = torch.full((5, 4, 2, 40), math.nan, device=device)
    logits = wide[:, :, 1, 4:36].transpose(0, 1)
    logits.copy_(batch.logits)
    logits.requires_grad_()
    ref_logits = torch.full((4, 5, 64), math.nan, device=device)[..., ::2].copy_(batch.ref_logits)
    out = loss_of(objective, Logits(logits), Logits(ref_logits), batch, impl=impl)
    (gradient,) = torch.autograd.grad(out.loss, logits)
    assert torch.equal(out.loss, expected["loss"])
    assert torch.equal(gradient, expected_gradient)
