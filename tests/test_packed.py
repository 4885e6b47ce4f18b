"""Packed input: sequences of any length in one row, bounded by cu_seqlens, equal to the same sequences padded."""

from dataclasses import replace

import pytest
import torch

from humanline_fused import Logits, TokenLogp, kto_kl, shift_targets, token_logp
from humanline_fused.chunked_head.chunks import Rows, in_blocks
from humanline_fused.tokens import Tokens
from humanline_fused.validation import values
from tests.inputs import Batch, loss_of, random_batch

LENGTHS = [3, 5, 0, 4]


def padded_and_packed(device, dtype=torch.float32, V=37):
    """Return the same four sequences, one of them empty, padded and packed, and cu_seqlens."""
    padded = random_batch(device, B=4, T=5, V=V, dtype=dtype)
    inside = torch.arange(5, device=device) < torch.tensor(LENGTHS, device=device)[:, None]
    padded.loss_mask.logical_and_(inside)
    rows = {name: getattr(padded, name)[inside][None] for name in ("logits", "ref_logits", "target_ids", "loss_mask")}
    packed = Batch(**rows, desirable=padded.desirable, advantages=padded.advantages)
    bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32, device=device)
    return padded, packed, inside, bounds


def run(objective, batch, impl, **settings):
    leaf = batch.logits.clone().requires_grad_()
    out = loss_of(objective, Logits(leaf), Logits(batch.ref_logits), batch, impl=impl, **settings)
    out.loss.backward()
    return out, leaf.grad


# Value and gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_sequences_have_the_loss_and_the_gradient_of_padded_ones(device, objective, impl, dtype):
    padded, packed, inside, bounds = padded_and_packed(device, dtype)
    expected, gradient = run(objective, padded, impl)
    out, packed_gradient = run(objective, packed, impl, cu_seqlens=bounds)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(packed_gradient[0], gradient[inside])
    torch.testing.assert_close(out.logp[0], expected.logp[inside])
    torch.testing.assert_close(out.unclamped_fraction, expected.unclamped_fraction)
    if objective != "grpo":
        torch.testing.assert_close(out.rewards, expected.rewards)


@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "sigmoid_norm"])
def test_packed_pairs_have_the_loss_of_padded_ones_for_every_loss_type(device, impl, loss_type):
    settings = {"loss_type": loss_type, "label_smoothing": 0.0}
    padded, packed, inside, bounds = padded_and_packed(device)
    expected, gradient = run("dpo", padded, impl, **settings)
    out, packed_gradient = run("dpo", packed, impl, cu_seqlens=bounds, **settings)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(packed_gradient[0], gradient[inside])
    assert packed_gradient.abs().sum() > 0


def test_a_sequence_does_not_affect_any_other(device, objective, impl):
    _, packed, _, bounds = padded_and_packed(device)
    leaf = packed.logits.clone().requires_grad_()
    policy = TokenLogp(token_logp(Logits(leaf), packed.target_ids, packed.loss_mask, impl=impl))
    out = loss_of(objective, policy, Logits(packed.ref_logits), packed, impl=impl, cu_seqlens=bounds)
    out.loss.backward()
    _, gradient = run(objective, packed, impl, cu_seqlens=bounds)
    assert torch.equal(leaf.grad, gradient)
    assert gradient[packed.loss_mask].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bounds_may_be_of_either_width(device, objective, impl, dtype):
    _, packed, _, bounds = padded_and_packed(device)
    narrow, _ = run(objective, packed, impl, cu_seqlens=bounds)
    out, _ = run(objective, packed, impl, cu_seqlens=bounds.to(dtype))
    assert torch.equal(out.loss, narrow.loss)


def test_grpo_takes_advantages_per_packed_token_too(device, impl):
    _, packed, _, bounds = padded_and_packed(device)
    per_sequence, gradient = run("grpo", packed, impl, cu_seqlens=bounds)
    per_token = packed.advantages.repeat_interleave(torch.tensor(LENGTHS, device=device))[None]
    out, token_gradient = run("grpo", Batch(**{**vars(packed), "advantages": per_token}), impl, cu_seqlens=bounds)
    assert torch.equal(out.loss, per_sequence.loss)
    assert torch.equal(token_gradient, gradient)


def test_one_launch_takes_packed_rows(device):
    _, packed, _, bounds = padded_and_packed(device)
    two, two_gradient = run("grpo", packed, "triton", cu_seqlens=bounds)
    one, one_gradient = run("grpo", packed, "triton", cu_seqlens=bounds, one_launch=True)
    torch.testing.assert_close(one.loss, two.loss)
    torch.testing.assert_close(one_gradient, two_gradient)


def test_kto_s_reference_point_counts_the_sequences_that_have_tokens(device, impl):
    padded, packed, _, bounds = padded_and_packed(device)
    points = []
    for batch, cu_seqlens in ((padded, None), (packed, bounds)):
        reference = token_logp(Logits(batch.logits), batch.target_ids, batch.loss_mask)
        rows = TokenLogp(reference + 0.25), TokenLogp(reference), batch.target_ids, batch.loss_mask
        points.append(kto_kl(*rows, cu_seqlens=cu_seqlens, impl=impl))
    assert points[0].item() == pytest.approx(0.25 * padded.loss_mask.sum().item() / 3)
    torch.testing.assert_close(*points)


def test_a_mask_without_any_true_gives_loss_0_with_a_graph(device, objective, impl):
    _, packed, _, bounds = padded_and_packed(device)
    packed.loss_mask[:] = False
    out, gradient = run(objective, packed, impl, cu_seqlens=bounds)
    assert out.loss == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize(("depends", "sizes"), [("pair", [3, 1]), ("sequence", [1, 1, 2])])
def test_rows_and_bounds_on_the_cpu_give_blocks_without_a_read_of_the_device(depends, sizes):
    ids = torch.zeros(1, 4, dtype=torch.long, device="meta")  # without values: a read is an error
    tokens = Tokens(ids, ids.bool(), torch.tensor([0, 1, 2, 4, 4]), depends=depends)
    placed = in_blocks(Rows(ids[0], 0), tokens, torch.arange(4))
    assert placed.block_sizes == sizes
    assert placed.positions.device.type == "meta"


# Targets


def test_the_last_token_of_a_packed_sequence_scores_none():
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    mask = torch.tensor([[False, True, True, True, True]])
    targets, loss_mask = shift_targets(ids, mask, torch.tensor([0, 3, 3, 5], dtype=torch.int32))
    assert targets[0, [0, 1, 3]].tolist() == [2, 3, 5]
    assert loss_mask.tolist() == [[True, True, False, True, False]]


# Errors


ILLEGAL = {
    "beyond the tokens": [0, 3, 8, 8, 1000],
    "below them": [-4, 3, 8, 8, 12],
    "falling": [0, 9, 3, 8, 12],
    "late": [2, 3, 8, 8, 12],
    "early": [0, 3, 8, 8, 10],
}


@pytest.mark.parametrize("illegal", ILLEGAL.values(), ids=ILLEGAL)
def test_bounds_past_validation_poison_the_loss(device, objective, impl, illegal, monkeypatch):
    _, packed, _, bounds = padded_and_packed(device)
    # As on a GPU, where a check would wait for the device.
    monkeypatch.setattr(values, "may_look_at", lambda tensor: False)
    with torch.no_grad():  # tokens of two sequences have two derivatives, and it is open which is stored last
        policy, reference = Logits(packed.logits), Logits(packed.ref_logits)
        for cu_seqlens, poisoned in ((bounds, False), (torch.tensor(illegal).to(bounds), True)):
            out = loss_of(objective, policy, reference, packed, impl=impl, cu_seqlens=cu_seqlens)
            assert out.loss.isnan() == poisoned


@pytest.mark.parametrize("illegal", ILLEGAL.values(), ids=ILLEGAL)
def test_bounds_past_validation_poison_the_reference_point(device, impl, illegal, monkeypatch):
    _, packed, _, bounds = padded_and_packed(device)
    monkeypatch.setattr(values, "may_look_at", lambda tensor: False)
    rows = (Logits(packed.logits), Logits(packed.ref_logits), packed.target_ids, packed.loss_mask)
    assert kto_kl(*rows, cu_seqlens=bounds, impl=impl).isfinite()
    assert kto_kl(*rows, cu_seqlens=torch.tensor(illegal).to(bounds), impl=impl).isnan()


def test_bounds_past_validation_leave_advantages_of_tokens_alone(device, impl, monkeypatch):
    _, packed, _, bounds = padded_and_packed(device)
    monkeypatch.setattr(values, "may_look_at", lambda tensor: False)
    packed = replace(packed, advantages=torch.ones_like(packed.logits[..., 0]))
    out, _ = run("grpo", packed, impl, cu_seqlens=torch.tensor(ILLEGAL["late"]).to(bounds))
    assert out.loss.isfinite()


def test_the_gradient_of_packed_input_has_one_itself(device, objective):
    _, packed, _, bounds = padded_and_packed(device, dtype=torch.float64, V=3)

    def loss(logits):
        return loss_of(objective, Logits(logits), Logits(packed.ref_logits), packed, cu_seqlens=bounds).loss

    assert torch.autograd.gradcheck(loss, packed.logits.requires_grad_())
    assert torch.autograd.gradgradcheck(loss, packed.logits)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_nothing_is_written_beyond_the_tokens_whatever_the_bounds_say(device, objective, monkeypatch):
    from humanline_kernels.dpo_loss import dpo_loss_forward
    from humanline_kernels.kto_loss import kto_loss_forward

    memory = torch.full((32,), 7.0, device=device)
    monkeypatch.setattr(torch, "zeros_like", lambda logp: memory[: logp.numel()].zero_().view(logp.shape))
    logp, mask = torch.zeros(1, 8, device=device), torch.ones(1, 8, dtype=torch.bool, device=device)
    bounds = torch.tensor([-4, 4, 20], dtype=torch.int32, device=device)
    if objective == "dpo":
        dpo_loss_forward(logp, logp, mask, bounds, 0.1, 0.0, -1.5, 1.5, True)
    else:
        desirable, kl = torch.ones(2, dtype=torch.bool, device=device), torch.zeros((), device=device)
        kto_loss_forward(logp, logp, mask, bounds, desirable, kl, 0.1, 1.0, 1.0, -1.5, 1.5, True)
    assert (memory[8:] == 7).all()


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 3, 8, 8, 11], r"expected 0 to 12, non-decreasing, got \[0, 3, 8, 8, 11\]"),
        ([0, 8, 3, 8, 12], "non-decreasing"),
        ([1, 3, 8, 8, 12], "expected 0 to 12"),
    ],
)
def test_bounds_that_do_not_cover_the_row_are_refused(objective, bounds, message):
    _, packed, _, _ = padded_and_packed(torch.device("cpu"))
    with pytest.raises(ValueError, match=message):
        run(objective, packed, "eager", cu_seqlens=torch.tensor(bounds))


def test_bounds_beside_padded_input_are_refused(objective):
    padded, _, _, bounds = padded_and_packed(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"cu_seqlens: expected ids of shape \[1, N\], got \[4, 5\]"):
        run(objective, padded, "eager", cu_seqlens=bounds)


def test_bounds_that_are_not_integers_are_refused(objective):
    _, packed, _, bounds = padded_and_packed(torch.device("cpu"))
    with pytest.raises(TypeError, match=r"cu_seqlens: expected int32 or int64 \[B \+ 1\], got float32 \[5\]"):
        run(objective, packed, "eager", cu_seqlens=bounds.float())


def test_an_odd_number_of_packed_sequences_is_no_batch_of_pairs():
    _, packed, _, _ = padded_and_packed(torch.device("cpu"))
    with pytest.raises(ValueError, match="expected an even number of sequences"):
        run("dpo", packed, "eager", cu_seqlens=torch.tensor([0, 3, 8, 12]))
