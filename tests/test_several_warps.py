"""Rows and sequences that several warps share: what one warp does right alone, because its threads never wait.

A row has a tile for all eight warps, part of a second tile, and columns before and after the 16-byte boundaries.
Foreign numbers lie between the rows.
"""

import math

import pytest
import torch

from humanline_fused import Logits, TokenLogp, autograd, token_logp_and_entropy
from humanline_fused.softmax import Softmax
from humanline_kernels.means import divide_to_means
from tests.error_budget import assert_within_budget, rounding_of_tree
from tests.inputs import SETTINGS, loss_and_gradient, loss_of, random_batch
from tests.oracle import assert_matches_oracle
from tests.test_softmax import assert_both_match_the_oracle

V = {torch.bfloat16: 4999, torch.float16: 4999, torch.float32: 2503}
of_every_dtype = pytest.mark.parametrize("dtype", V)
of_every_pass = pytest.mark.parametrize("one_launch", [False, True], ids=["two launches", "one launch"])
ONE_LAUNCH_V = {torch.bfloat16: 8299, torch.float32: 4201}
"""The same for the four warps and longer tiles of one launch."""


def batch_of(device, dtype, V):
    """Return two rows, one with its target in the first tile and one with it in the last column, and a masked row."""
    batch = random_batch(device, B=2, T=2, V=V, dtype=dtype)
    batch.loss_mask[:] = torch.tensor([[True, True], [True, False]])
    batch.target_ids[:] = torch.tensor([[V // 3, V - 1], [0, 5]])
    return batch


def apart(logits):
    """Rows that begin anywhere between 16-byte boundaries."""
    V = logits.shape[-1]
    return torch.nn.functional.pad(logits, (1, 2), value=math.nan)[..., 1 : V + 1]


# Rows


@of_every_dtype
@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_a_row_of_two_tiles_matches_the_oracle(device, dtype, objective):
    assert_matches_oracle(objective, batch_of(device, dtype, V[dtype]), lay_out=apart)


@pytest.mark.parametrize("dtype", ONE_LAUNCH_V)
def test_a_row_of_two_tiles_in_one_launch_matches_the_oracle(device, dtype):
    assert_matches_oracle("grpo", batch_of(device, dtype, ONE_LAUNCH_V[dtype]), lay_out=apart, one_launch=True)


@of_every_dtype
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_temperature_per_token_goes_with_entropy_and_softcap(device, dtype, softcap):
    batch = batch_of(device, dtype, V[dtype])
    batch.loss_mask[:] = True
    temperature = torch.tensor([[0.7, 1.3], [0.9, 1.1]], device=device)
    assert_both_match_the_oracle(batch, {"temperature": temperature} | ({"softcap": softcap} if softcap else {}))


@of_every_pass
def test_a_temperature_per_token_goes_with_a_loss(device, one_launch):
    batch = batch_of(device, torch.bfloat16, ONE_LAUNCH_V[torch.bfloat16])
    temperature = torch.tensor([[0.7, 1.3], [0.9, 1.1]], device=device)
    assert_matches_oracle("grpo", batch, temperature=temperature, one_launch=one_launch)


def in_place_and_beside(batch, dlogp, dentropy, **softmax):
    """Return dlogits written over the logits and beside them, and the numbers between the rows before and after."""
    gradients, between = [], []
    for inplace in (True, False):
        leaf = batch.logits.clone().requires_grad_()
        wide = torch.nn.functional.pad(leaf, (1, 2), value=7.0)
        policy = Logits(wide[..., 1:-2], inplace_gradient=inplace, **softmax)
        out = token_logp_and_entropy(policy, batch.target_ids, batch.loss_mask, impl="triton")
        torch.autograd.backward([out.logp, out.entropy], [dlogp, dentropy])
        gradients.append(leaf.grad)
        between.append(torch.cat([wide[..., :1], wide[..., -2:]], -1).detach())
    return gradients, between


@of_every_dtype
@pytest.mark.parametrize("softmax", [{}, {"softcap": 5.0, "temperature": 0.8}], ids=["plain", "softcap"])
def test_in_place_a_row_has_the_gradient_of_the_one_beside_it(device, dtype, softmax):
    batch = batch_of(device, dtype, V[dtype])
    dlogp, dentropy = (torch.tensor([[1.0, -0.5], [2.0, 1.0]], device=device) * weight for weight in (1.0, 0.1))
    gradients, between = in_place_and_beside(batch, dlogp, dentropy, **softmax)
    assert torch.equal(*gradients)
    assert gradients[0][batch.loss_mask].abs().amax(-1).min() > 0
    assert all((numbers == 7).all() for numbers in between)


@pytest.mark.parametrize("dtype", V)
def test_rows_are_scored_and_written_over_in_one_launch_as_in_two(device, dtype):
    batch, per_token = batch_of(device, dtype, V[dtype]), torch.tensor([0.7, 1.3, 0.9, 1.1], device=device)
    wide = torch.nn.functional.pad(batch.logits.flatten(0, 1), (1, 2), value=7.0)
    one, two = wide[:, 1:-2], wide.clone()[:, 1:-2]
    ids, softmax = batch.target_ids.flatten(), Softmax(temperature=per_token)
    scores = autograd.score_and_write_dlogits_(one, ids, softmax)
    expected = autograd.score_rows(two, ids, softmax, False)
    autograd.write_dlogits_(two, ids, softmax, expected, torch.ones_like(expected.logp), None)
    assert all(map(torch.equal, scores, expected))
    assert torch.equal(one, two)
    assert one.abs().amax(-1).min() > 0
    assert (wide[:, [0, -2, -1]] == 7).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_another_grad_output_scales_every_tile(device, dtype):
    batch = batch_of(device, dtype, V[dtype])
    once, scaled = (
        loss_and_gradient("grpo", batch, impl="triton", one_launch=True, lay_out=apart, grad_output=grad_output)[1]
        for grad_output in (1.0, 4.0)
    )
    assert once.abs().amax(-1)[batch.loss_mask].min() > 0
    assert torch.equal(scaled, once * 4)


@of_every_pass
@pytest.mark.parametrize("dtype", ONE_LAUNCH_V)
def test_rows_with_a_spike_are_read_again_by_all_warps(device, dtype, one_launch):
    batch = batch_of(device, dtype, ONE_LAUNCH_V[dtype] if one_launch else V[dtype])
    batch.logits[..., 2000] = batch.ref_logits[..., 7] = 500.0
    assert_matches_oracle("grpo", batch, lay_out=apart, one_launch=one_launch)


@of_every_pass
def test_rows_that_do_not_count_are_not_read(device, one_launch):
    batch = batch_of(device, torch.float32, V[torch.float32])
    expected, expected_gradient = loss_and_gradient("grpo", batch, impl="triton", lay_out=apart, one_launch=one_launch)
    batch.logits[~batch.loss_mask] = batch.ref_logits[~batch.loss_mask] = math.nan
    out, gradient = loss_and_gradient("grpo", batch, impl="triton", lay_out=apart, one_launch=one_launch)
    assert all(torch.equal(out[name], expected[name]) for name in out)
    assert torch.equal(gradient, expected_gradient)
    assert not gradient[~batch.loss_mask].any()


# Sequences


def tokens_of(device, T, filling=0.0, spread=1.0):
    """Return log-probs of policy and reference of four sequences, a mask, and other numbers where it is False."""
    generator = torch.Generator().manual_seed(4)
    logp = -3 * torch.rand(4, T, generator=generator)
    ref_logp = logp + spread * torch.randn(4, T, generator=generator)
    mask = torch.rand(4, T, generator=generator) < 0.8
    return [x.where(mask, filling).to(device) for x in (logp, ref_logp)], mask.to(device)


ROUNDINGS = 1 + 2 + 10
"""Of a token's log-ratio: as a difference, in the sums of its lane over two tiles, and in a tree over 1024 lanes."""


@pytest.mark.parametrize("filling", [0.0, math.nan])
def test_a_sequence_of_two_tiles_of_tokens_matches_the_oracle(device, objective, filling):
    # KTO's sigmoid would be 0 or 1 of the sums of larger log-ratios.
    scores, mask = tokens_of(device, 1203, filling, spread=0.1 if objective == "kto" else 1.0)
    batch = random_batch(device, B=4, T=1203, V=2)
    batch.loss_mask[:] = mask
    results = []
    for impl, dtype in (("triton", torch.float32), ("eager", torch.float32), ("eager", torch.float64)):
        logp, ref_logp = (x.detach().clone().to(dtype) for x in scores)
        out = loss_of(objective, TokenLogp(logp.requires_grad_()), TokenLogp(ref_logp), batch, impl=impl)
        out.loss.backward()
        results.append((out.loss.detach(), logp.grad))
    log_ratios = (scores[0] - scores[1]).where(mask, 0.0)
    if objective == "grpo":
        nats = log_ratios.abs().max().item()
        sums = {"loss": rounding_of_tree(results[2][0], ROUNDINGS), "dlogp": 0.0}
    else:
        # A pair's margin is that of two sequences. The loss has a slope of at most 1 in it, a sigmoid one of 1/4.
        nats, beta, sequences = 0.0, SETTINGS[objective]["beta"], 2 if objective == "dpo" else 1
        margin = beta * sequences * max(rounding_of_tree(row, ROUNDINGS) for row in log_ratios)
        sums = {"loss": margin, "dlogp": beta * 0.25 * margin * sequences / len(log_ratios)}
    for name, actual, eager, oracle in zip(("loss", "dlogp"), *results, strict=True):
        unit = 1.0 if name == "loss" else oracle.abs().max().item()
        assert_within_budget(actual, eager, oracle, name, log_probs=nats, unit=unit, sums=sums[name])


@pytest.mark.parametrize("given", [False, True], ids=["counted", "given"])
def test_partial_sums_and_coefficients_of_two_tiles_are_divided(device, given):
    rows, (begin, end) = 1100, (3, 1203)  # of whole numbers, which have exact sums
    partials = torch.randint(0, 9, (rows, 5), generator=torch.Generator().manual_seed(0)).float()
    loss, losses, tokens, *fractions = partials.sum(0)
    divisor = torch.tensor(7.0) if given else losses
    wide = torch.arange(end + 5.0)
    expected = wide.clone()
    expected[begin:end] /= divisor
    wide = wide.to(device)
    num_items = divisor.to(device) if given else None
    mean, shares = divide_to_means(partials.to(device), wide[begin:end], num_items, tokens=2)
    assert mean.item() == loss / divisor
    assert shares.tolist() == [fraction / tokens for fraction in fractions]
    assert torch.equal(wide.cpu(), expected)
