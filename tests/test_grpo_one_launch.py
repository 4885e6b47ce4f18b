"""grpo_loss(..., one_launch=True): loss and gradient in one pass over the rows (docs/math.md, equations 9 to 15)."""

import pytest
import torch

from humanline_fused import Logits, TokenLogp, grpo_loss, token_logp
from humanline_kernels import cache
from humanline_kernels.cache import held_rows
from humanline_kernels.tiles import one_launch_programs
from tests.inputs import SETTINGS, loss_and_gradient, loss_of, random_batch
from tests.oracle import assert_matches_oracle

# Value and gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_it_is_as_close_to_the_oracle_as_eager_is(device, dtype, beta):
    assert_matches_oracle("grpo", random_batch(device, dtype=dtype), one_launch=True, beta=beta)


def test_a_vocabulary_of_several_tiles_is_too(device):
    batch = random_batch(device, B=2, T=1, V=70001, dtype=torch.bfloat16)
    assert_matches_oracle("grpo", batch, one_launch=True)


@pytest.mark.parametrize("V", [37, 64])
def test_it_gives_what_two_launches_give(device, V):
    batch = random_batch(device, V=V)
    two, two_gradient = loss_and_gradient("grpo", batch, impl="triton")
    one, one_gradient = loss_and_gradient("grpo", batch, impl="triton", one_launch=True)
    assert torch.equal(one["logp"], two["logp"])
    for name in two:
        torch.testing.assert_close(one[name], two[name])
    torch.testing.assert_close(one_gradient, two_gradient)


@pytest.mark.parametrize("softmax", [{"temperature": 0.7}, {"softcap": 5.0, "scale": 1.2}])
def test_temperature_and_softcap_go_with_it(device, softmax):
    batch = random_batch(device)
    gradients = []
    for one_launch in (False, True):
        leaf = batch.logits.clone().requires_grad_()
        policy, reference = Logits(leaf, **softmax), Logits(batch.ref_logits, **softmax)
        loss_of("grpo", policy, reference, batch, impl="triton", one_launch=one_launch).loss.backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_the_reference_may_be_log_probs(device):
    batch = random_batch(device)
    ref_logp = token_logp(Logits(batch.ref_logits), batch.target_ids, batch.loss_mask, impl="triton")
    expected, expected_gradient = loss_and_gradient("grpo", batch, impl="triton", one_launch=True)
    leaf = batch.logits.clone().requires_grad_()
    out = loss_of("grpo", Logits(leaf), TokenLogp(ref_logp), batch, impl="triton", one_launch=True)
    out.loss.backward()
    assert torch.equal(out.loss, expected["loss"])
    assert torch.equal(leaf.grad, expected_gradient)


@pytest.mark.parametrize("grad_output", [0.25, 3.0])
def test_another_grad_output_is_multiplied_in_afterwards(device, grad_output):
    batch = random_batch(device)
    _, once = loss_and_gradient("grpo", batch, impl="triton", one_launch=True)
    _, scaled = loss_and_gradient("grpo", batch, impl="triton", one_launch=True, grad_output=grad_output)
    assert once.abs().max() > 0
    assert torch.equal(scaled, once * grad_output)


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_rows_without_an_advantage_go_with_it(device, beta):
    batch = random_batch(device, dtype=torch.bfloat16)
    batch.advantages[::2] = 0
    assert_matches_oracle("grpo", batch, one_launch=True, beta=beta)
    _, gradient = loss_and_gradient("grpo", batch, impl="triton", one_launch=True, beta=beta)
    assert gradient[1::2].any()
    assert bool(gradient[::2].any()) == (beta > 0)


def test_num_items_and_advantages_per_token_go_with_it(device):
    batch = random_batch(device)
    advantages = torch.randn(4, 5, generator=torch.Generator().manual_seed(2)).to(device)
    results = []
    for one_launch in (False, True):
        leaf = batch.logits.clone().requires_grad_()
        out = grpo_loss(
            Logits(leaf),
            Logits(batch.ref_logits),
            batch.target_ids,
            batch.loss_mask,
            advantages,
            num_items_in_batch=40,
            impl="triton",
            one_launch=one_launch,
            **SETTINGS["grpo"],
        )
        out.loss.backward()
        results.append((out.loss.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1])


# Mask


def test_rows_that_do_not_count_are_never_read_and_get_zeros(device):
    batch = random_batch(device)
    masked = ~batch.loss_mask
    _, expected = loss_and_gradient("grpo", batch, impl="triton", one_launch=True)
    batch.logits[masked] = torch.nan
    batch.ref_logits[masked] = torch.nan
    batch.target_ids[masked] = -100
    out, gradient = loss_and_gradient("grpo", batch, impl="triton", one_launch=True)
    assert out["loss"].isfinite()
    assert torch.equal(gradient, expected)
    assert (gradient[masked] == 0).all()


@pytest.mark.parametrize("shape", [(0, 5), (4, 0)])
def test_an_empty_batch_gives_loss_0(device, shape):
    out, gradient = loss_and_gradient("grpo", random_batch(device, *shape), impl="triton", one_launch=True)
    assert out["loss"] == 0
    assert gradient.shape == (*shape, 37)


def test_every_element_is_written_also_in_rows_of_zeros(device):
    batch = random_batch(device)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives with NaN
    try:
        _, gradient = loss_and_gradient("grpo", batch, impl="triton", one_launch=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not gradient.isnan().any()


# Permission, not command


class Dropped(torch.autograd.Function):
    """The same value, whose derivative is undefined."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return x.clone()

    @staticmethod
    def backward(ctx, *grad_outputs):
        return None


def test_an_undefined_gradient_of_the_loss_gives_the_logits_none(device):
    batch = random_batch(device)
    for one_launch in (False, True):
        leaf = batch.logits.clone().requires_grad_()
        out = loss_of("grpo", Logits(leaf), Logits(batch.ref_logits), batch, impl="triton", one_launch=one_launch)
        Dropped.apply(out.loss).backward()
        assert leaf.grad is None


def test_a_second_backward_is_refused_with_what_to_do(device):
    batch = random_batch(device)
    policy = Logits(batch.logits.requires_grad_())
    loss = loss_of("grpo", policy, Logits(batch.ref_logits), batch, impl="triton", one_launch=True).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one_launch: expected one backward, got a second"):
        loss.backward()


def test_eager_and_a_reference_that_one_launch_cannot_read_have_the_usual_way(device):
    batch = random_batch(device)
    for impl, reference in (("eager", Logits(batch.ref_logits)), ("triton", Logits(batch.ref_logits, softcap=9.0))):
        losses = []
        for one_launch in (False, True):
            policy = Logits(batch.logits.requires_grad_())
            losses.append(loss_of("grpo", policy, reference, batch, impl=impl, one_launch=one_launch).loss)
        assert torch.equal(*losses)


def test_float16_has_the_usual_way_whose_gradient_a_scaled_loss_saves_from_underflow(device):
    batch = random_batch(device, dtype=torch.float16)
    gradients = [
        loss_and_gradient(
            "grpo", batch, impl="triton", num_items_in_batch=2**20, grad_output=2.0**20, one_launch=one_launch
        )[1]
        for one_launch in (False, True)
    ]
    assert (gradients[0][batch.loss_mask] != 0).any()
    assert torch.equal(*gradients)


def test_without_a_gradient_there_is_nothing_to_save(device):
    batch = random_batch(device)
    with torch.no_grad():
        policy = Logits(batch.logits.requires_grad_())
        loss = loss_of("grpo", policy, Logits(batch.ref_logits), batch, impl="triton", one_launch=True).loss
    assert not loss.requires_grad


# (MiB of L2, multiprocessors, compute capability) of an A100, an H100 or H200, a B200, an L40S, and an MI300X
A100, H200, B200 = (40, 108, (8, 0)), (50, 132, (9, 0)), (126, 148, (10, 0))
L40S, MI300X = (96, 142, (8, 9)), (4, 304, (9, 4))


@pytest.mark.parametrize(
    ("V", "gpu", "programs"),
    [
        (32000, H200, 409),
        (50257, H200, 260),
        (128256, H200, 102),
        (151936, H200, 86),
        (256000, H200, 0),
        (128256, A100, 81),
        (256000, B200, 129),
        (128256, L40S, 142),
        (32000, MI300X, 0),
    ],
)
def test_no_more_rows_are_in_flight_than_a_partition_of_the_cache_holds(V, gpu, programs):
    mib, multiprocessors, capability = gpu
    held, why = held_rows("a device that nobody measured", mib * 2**20, capability)
    assert why.endswith("a model, not measured on this device")
    assert one_launch_programs(V, 2, held, multiprocessors) == programs
    assert held == (mib * 2**20 // 2 if gpu in (A100, H200, B200) else int(0.6 * mib * 2**20))


def test_a_measured_device_has_its_own_limit(monkeypatch):
    monkeypatch.setitem(cache.MEASURED, "a card", 123)
    assert held_rows("a card", 50 * 2**20, (9, 0)) == (123, "measured")


def test_two_launches_are_kept_where_too_few_rows_fit(device, monkeypatch):
    from humanline_fused import autograd

    monkeypatch.setattr(autograd, "num_programs", lambda logits: 0)
    monkeypatch.setattr(autograd, "grpo_one_launch", None)
    batch = random_batch(device)
    expected, _ = loss_and_gradient("grpo", batch, impl="triton")
    out, _ = loss_and_gradient("grpo", batch, impl="triton", one_launch=True)
    assert torch.equal(out["loss"], expected["loss"])


# Errors


def test_log_probs_as_the_policy_are_refused():
    batch = random_batch(torch.device("cpu"))
    logp = TokenLogp(torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"one_launch: expected Logits\(\.\.\.\) as the policy, got TokenLogp"):
        loss_of("grpo", logp, logp, batch, one_launch=True)


def test_an_inplace_gradient_beside_it_is_refused():
    batch = random_batch(torch.device("cpu"))
    policy = Logits(batch.logits.requires_grad_() * 1, inplace_gradient=True)
    with pytest.raises(ValueError, match="one_launch: expected logits without inplace_gradient"):
        loss_of("grpo", policy, Logits(batch.ref_logits), batch, one_launch=True)
