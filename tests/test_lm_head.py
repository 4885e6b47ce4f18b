"""The head inside the loss gives the results of logits, for all chunks, kinds of scores, gradients and layouts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from humanline_fused import LMHead, Logits, TokenLogp, token_log_ratio, token_logp, token_logp_and_entropy
from tests.head_inputs import HeadBatch, Kind, answer, head_batch
from tests.inputs import loss_of

CPU = torch.device("cpu")
ONE_ROW, TWO_CHUNKS = 1, 37 * 4 * 14
"""workspace_bytes: every pair longer than a chunk; pairs and sequences of about half the tokens in each of two."""


def assert_matches_oracle(objective: str, batch: HeadBatch, policy: Kind, reference: Kind, impl: str, **kwargs: Any):
    """Assert that the errors of loss, log-probs and gradients are at most those of eager on logits, plus rounding.

    Rounding is that of float32 in sums with the terms of products and log-probs, and half a unit of the dtype in each
    of a product's two factors, relative to the sums' absolute terms.
    """
    actual, gradients = answer(objective, batch, policy, reference, impl=impl, **kwargs)
    plain = {name: value for name, value in kwargs.items() if name != "options"}
    plain["options"] = {n: v for n, v in kwargs.get("options", {}).items() if n in ("temperature", "softcap", "scale")}
    eager, eager_gradients = answer(objective, batch, "logits", "logits", **plain)
    oracle, oracle_gradients = answer(objective, batch.to(torch.float64), "logits", "logits", **plain)
    terms = batch.hidden[0, 0].numel() + len(batch.weight) + batch.tokens.loss_mask.numel()
    log_probs = (oracle["logp"].abs() + oracle["ref_logp"].abs()).sum().item()
    single, own_dtype = torch.finfo(torch.float32).eps, torch.finfo(batch.hidden.dtype).eps
    for name, value in oracle.items():
        size = max(value.abs().max().item(), 1.0)
        allowed = (eager[name].double() - value).abs().max() + 2 * single * (log_probs + terms) * size
        assert actual[name].dtype == eager[name].dtype, name
        assert ((actual[name].double() - value).abs() <= allowed).all(), name
    assert gradients.keys() == oracle_gradients.keys()
    for name, value in oracle_gradients.items():
        assert gradients[name].dtype == batch.hidden.dtype, name
        size = _absolute_terms(batch, oracle, name) * max(1.0, abs(kwargs.get("grad_output", 1.0)))
        own = (eager_gradients[name].double() - value).abs().max()
        allowed = own + (single * (terms + log_probs) + own_dtype) * size
        excess = (gradients[name].double() - value).abs() - allowed
        assert (excess <= 0).all(), f"{name}: {excess.max():.2e} over {allowed:.2e}"
        assert value.abs().max() > 0


def _absolute_terms(batch: HeadBatch, oracle: dict[str, torch.Tensor], name: str) -> float:
    """Return the largest sum of absolute terms of a gradient entry, for coefficients of at most 1."""
    logits = linear(batch.hidden.double(), batch.weight.double(), None if batch.bias is None else batch.bias.double())
    p = (logits * batch.tokens.loss_mask[..., None]).softmax(-1).flatten(0, 1)
    p.scatter_add_(-1, batch.tokens.target_ids.flatten()[:, None], torch.ones_like(p[:, :1]))
    if name == "hidden":
        return (p @ batch.weight.double().abs()).max().item()
    rows = batch.hidden.double().abs().flatten(0, 1)
    return (p.T @ rows).max().item() if name == "weight" else p.sum(0).max().item()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("reference", ["head", "logits", "logp"])
@pytest.mark.parametrize("policy", ["head", "logits", "logp"])
def test_every_mix_of_sources_matches_the_oracle(objective, policy, reference, frozen, packed):
    batch = head_batch(CPU)
    options = {"workspace_bytes": TWO_CHUNKS}
    batch = batch.packed if packed else batch
    assert_matches_oracle(objective, batch, policy, reference, "eager", frozen=frozen, grad_output=3.0, options=options)


# Kernels score the rows of a chunk in the same way for all gradients, so only eager is tested with all four, above.
@pytest.mark.parametrize(("frozen", "packed"), [(False, True), (True, False)])
@pytest.mark.parametrize(("policy", "reference"), [("head", "head"), ("head", "logits"), ("logits", "head")])
def test_a_mix_scored_by_kernels_matches_the_oracle(device, objective, policy, reference, frozen, packed):
    batch = head_batch(device)
    options = {"workspace_bytes": TWO_CHUNKS}
    batch = batch.packed if packed else batch
    assert_matches_oracle(objective, batch, policy, reference, "triton", frozen=frozen, options=options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("frozen", "workspace_bytes"), [(False, TWO_CHUNKS), (True, None)])
def test_half_precision_matches_the_oracle(device, objective, impl, dtype, frozen, workspace_bytes):
    batch = head_batch(device).to(dtype)
    options = {"workspace_bytes": workspace_bytes}
    assert_matches_oracle(objective, batch, "head", "head", impl, frozen=frozen, options=options)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("drop_clamped", [False, True])
@pytest.mark.parametrize(
    ("workspace_bytes", "softmax"),
    [
        (ONE_ROW, {}),
        (ONE_ROW, {"softcap": 4.0, "scale": 0.8}),
        (37 * 4 * 4, {"temperature": 0.7}),
        (TWO_CHUNKS, {}),
        (TWO_CHUNKS, {"softcap": 4.0, "scale": 0.8}),
        (None, {"temperature": 0.7}),
    ],
)
def test_any_chunks_match_the_oracle(device, objective, shared, workspace_bytes, drop_clamped, softmax):
    options = {"workspace_bytes": workspace_bytes, "drop_clamped": drop_clamped, **softmax}
    assert_matches_oracle(objective, head_batch(device), "head", "head", "eager", shared=shared, options=options)


@pytest.mark.parametrize(("packed", "workspace_bytes"), [(True, ONE_ROW), (False, TWO_CHUNKS), (True, None)])
@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "sigmoid_norm"])
def test_every_loss_of_pairs_under_a_trained_head_matches_the_oracle(device, impl, loss_type, workspace_bytes, packed):
    batch = head_batch(device)
    batch = batch.packed if packed else batch
    # With beta = 1 the slopes of IPO stay below 1, as those of the others do.
    settings = {"loss_type": loss_type, "label_smoothing": 0.0, "beta": 1.0 if loss_type == "ipo" else 0.3}
    options = {"workspace_bytes": workspace_bytes}
    assert_matches_oracle("dpo", batch, "head", "head", impl, options=options, **settings)


@pytest.mark.parametrize("workspace_bytes", [ONE_ROW, TWO_CHUNKS, None])
def test_rows_without_an_advantage_match_the_oracle(device, impl, workspace_bytes):
    batch = head_batch(device, bias=False)
    batch.tokens.advantages[1] = 0
    options = {"workspace_bytes": workspace_bytes}
    for frozen, beta in ((False, 0.0), (True, 0.0), (False, 0.05)):  # with a penalty they have a gradient
        assert_matches_oracle("grpo", batch, "head", "head", impl, frozen=frozen, options=options, beta=beta)


def test_a_temperature_per_token_goes_with_its_token(device, objective, impl):
    batch = head_batch(device)
    temperature = torch.rand(batch.tokens.target_ids.shape, generator=torch.Generator().manual_seed(3)) + 0.5
    options = {"temperature": temperature.to(device), "workspace_bytes": 37 * 4 * 9}
    assert_matches_oracle(objective, batch, "head", "head", impl, options=options)


@pytest.mark.parametrize("workspace_bytes", [ONE_ROW, 37 * 8 * 9, None])
def test_gradients_of_any_of_the_three_are_the_derivative(objective, workspace_bytes):
    batch = head_batch(CPU, B=2, T=3, H=3, V=5).to(torch.float64)
    names = ["hidden", "weight", "bias"]

    def loss_on(inputs):
        def loss(*tensors):
            head = dict(zip(inputs, tensors, strict=True))
            head = {name: head.get(name, getattr(batch, name)) for name in names}
            policy = LMHead(**head, workspace_bytes=workspace_bytes)
            return loss_of(objective, policy, LMHead(batch.ref_hidden, batch.ref_weight), batch.tokens).loss

        return loss

    def leaves(inputs):
        return [getattr(batch, name).clone().requires_grad_() for name in inputs]

    assert torch.autograd.gradcheck(loss_on(names), leaves(names))
    every = leaves(names)
    exact = dict(zip(names, torch.autograd.grad(loss_on(names)(*every), every), strict=True))
    for inputs in (["hidden"], ["weight"], ["bias"], ["hidden", "bias"]):
        some = leaves(inputs)
        for name, gradient in zip(inputs, torch.autograd.grad(loss_on(inputs)(*some), some), strict=True):
            # Each entry is a sum of at most 3 · 5 or 6 · 3 products, in float64.
            rounding = 18 * torch.finfo(torch.float64).eps * exact[name].abs().max().item()
            torch.testing.assert_close(gradient, exact[name], rtol=0, atol=rounding)


@pytest.mark.parametrize("workspace_bytes", [ONE_ROW, 37 * 8 * 5, None])
@pytest.mark.parametrize("frozen", [False, True])
def test_log_probs_and_entropies_have_the_derivatives_of_those_of_logits(impl, frozen, workspace_bytes):
    batch = head_batch(CPU)
    batch = batch if impl == "triton" else batch.to(torch.float64)
    results = []
    for kind in ("head", "logits"):
        leaves = [batch.hidden.clone().requires_grad_()]
        leaves += [t.clone().requires_grad_(not frozen) for t in (batch.weight, batch.bias)]
        scores = LMHead(*leaves, workspace_bytes=workspace_bytes) if kind == "head" else Logits(linear(*leaves))
        out = token_logp_and_entropy(scores, batch.tokens.target_ids, batch.tokens.loss_mask, impl=impl)
        total = (out.logp.square() + out.entropy.sin()).sum()
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        results.append((out.logp.detach(), out.entropy.detach(), *torch.autograd.grad(total, wanted)))
    for actual, expected in zip(*results, strict=True):
        # Products sum up to 37 terms, in another order.
        rounding = 37 * torch.finfo(expected.dtype).eps * expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=0, atol=rounding)


@pytest.mark.parametrize(("frozen", "workspace_bytes"), [(True, ONE_ROW), (False, TWO_CHUNKS), (False, None)])
def test_backward_may_be_called_again_with_another_grad_output(device, objective, impl, frozen, workspace_bytes):
    batch = head_batch(device)
    leaves = [batch.hidden.requires_grad_(), batch.weight.requires_grad_(not frozen)]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]

    policy = LMHead(*leaves, workspace_bytes=workspace_bytes)
    loss = loss_of(objective, policy, LMHead(batch.ref_hidden, batch.ref_weight), batch.tokens, impl=impl).loss
    once = torch.autograd.grad(loss, wanted, retain_graph=True)
    fourfold = torch.autograd.grad(4 * loss, wanted, retain_graph=True)
    again = torch.autograd.grad(loss, wanted)
    for first, scaled, second in zip(once, fourfold, again, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(scaled, 4 * first)  # a power of two: no rounding


@pytest.mark.parametrize("frozen", [False, True])
def test_ids_overwritten_before_backward_change_no_gradient_and_rows_are_an_error(frozen):
    batch = head_batch("cpu")
    ids, mask = batch.tokens.target_ids, batch.tokens.loss_mask
    rows = mask.flatten().nonzero()[:, 0]
    hidden, weight = batch.hidden.requires_grad_(), batch.weight.requires_grad_(not frozen)
    out = token_logp_and_entropy(LMHead(hidden, weight, rows=rows), ids, mask)
    total = (out.logp + out.entropy).sum()
    expected = torch.autograd.grad(total, hidden, retain_graph=True)
    ids.zero_()
    assert torch.equal(*torch.autograd.grad(total, hidden, retain_graph=True), *expected)
    rows.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_no_gradient_reaches_the_reference(device, objective, impl):
    batch = head_batch(device)
    ref_hidden, ref_weight = batch.ref_hidden.requires_grad_(), batch.ref_weight.requires_grad_()

    policy = LMHead(batch.hidden.requires_grad_(), batch.weight.requires_grad_())
    loss_of(objective, policy, LMHead(ref_hidden, ref_weight), batch.tokens, impl=impl).loss.backward()
    assert batch.weight.grad is not None
    assert ref_hidden.grad is None
    assert ref_weight.grad is None


def test_float64_log_probs_beside_a_trained_head_take_its_precision(objective, impl):
    batch = head_batch(CPU)
    policy, ref_logp = LMHead(batch.hidden, batch.weight.requires_grad_()), torch.full((4, 6), -3.1)
    single, double = (
        loss_of(objective, policy, TokenLogp(reference), batch.tokens, impl=impl).loss
        for reference in (ref_logp, ref_logp.double())
    )
    assert double.dtype == torch.float32
    assert torch.equal(single, double)


@pytest.mark.parametrize("own", [{"temperature": 0.7}, {"scale": 0.7}, {"bias": None}, {"fp32_logits": True}])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_reference_on_the_same_weight_keeps_settings_of_its_own(own, frozen):
    batch = head_batch(CPU).to(torch.bfloat16)
    weight, tokens = batch.weight.requires_grad_(not frozen), batch.tokens
    reference = LMHead(batch.ref_hidden, weight, **{"bias": batch.bias} | own)
    out = loss_of("dpo", LMHead(batch.hidden.requires_grad_(), weight, batch.bias), reference, tokens, impl="eager")
    assert torch.equal(out.ref_logp, token_logp(reference, tokens.target_ids, tokens.loss_mask, impl="eager"))


def test_a_tied_embedding_gets_the_gradient_of_both_its_uses():
    batch = head_batch(CPU, bias=False)
    gradients = []
    for kind in ("head", "logits"):
        weight = batch.weight.clone().requires_grad_()
        hidden = weight[batch.tokens.target_ids.roll(1, 1)].tanh()
        scores = LMHead(hidden, weight) if kind == "head" else Logits(linear(hidden, weight))
        token_logp(scores, batch.tokens.target_ids, batch.tokens.loss_mask).sum().backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("workspace_bytes", [ONE_ROW, TWO_CHUNKS, None])
def test_main_grad_takes_the_weight_s_gradient_and_keeps_what_it_held(objective, workspace_bytes):
    batch = head_batch(CPU).to(torch.bfloat16)

    def gradient(main_grad: bool):
        weight = torch.nn.Parameter(batch.weight.clone())
        weight.main_grad = torch.ones(weight.shape)  # pyright: ignore[reportAttributeAccessIssue]
        options = {"main_grad": main_grad, "workspace_bytes": workspace_bytes}
        policy = LMHead(batch.hidden.clone().requires_grad_(), weight, **options)
        loss = loss_of(objective, policy, LMHead(batch.ref_hidden, batch.ref_weight), batch.tokens).loss
        (2 * loss).backward()
        return weight

    weight = gradient(True)
    assert weight.grad is None
    expected = gradient(False).grad
    assert expected is not None
    # In float32 it is the returned gradient before the rounding to bfloat16.
    rounded = (weight.main_grad - 1).to(torch.bfloat16)  # pyright: ignore[reportAttributeAccessIssue]
    ulp = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(rounded, expected, rtol=ulp, atol=ulp / 256)


def test_float32_logits_take_off_the_error_that_rounding_logits_makes(objective):
    batch = head_batch(CPU).to(torch.bfloat16)
    oracle, _ = answer(objective, batch.to(torch.float64), "logits", "logits")
    errors = []
    for fp32_logits in (False, True):
        values, _ = answer(objective, batch, "head", "head", options={"fp32_logits": fp32_logits})
        errors.append((values["logp"] - oracle["logp"]).abs().max().item())
    rounded, kept = errors
    assert kept < 1e-5 < rounded


def test_autocast_casts_head_and_hidden_as_a_linear_layer_s(objective):
    batch = head_batch(CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, gradients = answer(objective, batch, "head", "head")
        _, eager_gradients = answer(objective, batch, "logits", "logits")
    cast, _ = answer(objective, batch.to(torch.bfloat16), "head", "head")
    assert torch.equal(values["logp"], cast["logp"])
    exact, exact_gradients = answer(objective, batch.to(torch.float64), "logits", "logits")
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        error, own = ((g[name] - exact_gradients[name]).abs().max() for g in (gradients, eager_gradients))
        assert error <= own + torch.finfo(torch.bfloat16).eps * _absolute_terms(batch, exact, name)


def test_any_loss_can_be_written_on_the_log_ratio_of_heads(impl):
    batch = head_batch(CPU)
    gradients = []
    for kind in ("head", "logits"):
        hidden, weight = batch.hidden.clone().requires_grad_(), batch.weight.clone().requires_grad_()
        policy = LMHead(hidden, weight) if kind == "head" else Logits(linear(hidden, weight))
        reference = TokenLogp(torch.full(batch.tokens.target_ids.shape, -3.0))
        out = token_log_ratio(policy, reference, batch.tokens.target_ids, batch.tokens.loss_mask, impl=impl)
        gradients.append(torch.autograd.grad(out.log_ratio.square().sum(), [hidden, weight]))
    torch.testing.assert_close(*gradients)


def test_double_backward_is_a_clear_error(objective):
    batch = head_batch(CPU)
    policy, reference = LMHead(batch.hidden.requires_grad_(), batch.weight), LMHead(batch.ref_hidden, batch.ref_weight)
    loss = loss_of(objective, policy, reference, batch.tokens).loss
    with pytest.raises(RuntimeError, match=r"double backward: .* or Logits"):
        torch.autograd.grad(loss, batch.hidden, create_graph=True)


def test_a_batch_without_a_token_that_counts_has_a_loss_and_gradients_of_zero(objective, impl):
    batch = head_batch(CPU)
    tokens = replace(batch.tokens, loss_mask=torch.zeros_like(batch.tokens.loss_mask))
    values, gradients = answer(objective, replace(batch, tokens=tokens), "head", "head", impl=impl)
    assert values["loss"] == 0
    assert all(not gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("frozen", [False, True])
def test_log_probs_and_entropies_of_no_token_have_gradients_of_zero(impl, frozen):
    batch = head_batch(CPU)
    nothing = torch.zeros_like(batch.tokens.loss_mask)
    for score in (token_logp, token_logp_and_entropy):
        hidden, weight = batch.hidden.clone().requires_grad_(), batch.weight.clone().requires_grad_(not frozen)
        out = score(LMHead(hidden, weight), batch.tokens.target_ids, nothing, impl=impl)
        total = out.sum() if isinstance(out, torch.Tensor) else out.logp.sum() + out.entropy.sum()
        assert total == 0
        wanted = [hidden] if frozen else [hidden, weight]
        assert not any(gradient.any() for gradient in torch.autograd.grad(total, wanted))


def test_checkpointing_around_the_loss_computes_the_model_twice_and_not_once_a_chunk(objective):
    batch, calls = head_batch(CPU), []
    weight = batch.weight.requires_grad_()

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        policy = LMHead(hidden.tanh(), weight, workspace_bytes=TWO_CHUNKS)
        return loss_of(objective, policy, LMHead(batch.ref_hidden, batch.ref_weight), batch.tokens).loss

    hidden = batch.hidden.requires_grad_()
    plain = torch.autograd.grad(loss(hidden), [hidden, weight])
    calls.clear()
    value = checkpoint(loss, hidden, use_reentrant=False)
    assert len(calls) == 1
    again = torch.autograd.grad(value, [hidden, weight])
    assert len(calls) == 2
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))


@pytest.mark.parametrize("workspace_bytes", [ONE_ROW, None])
def test_float16_holds_the_weight_s_gradient_of_coefficients_that_it_would_lose(workspace_bytes):
    batch = head_batch(CPU, bias=False).to(torch.float16)
    gradients = []
    for kind, dtype in (("head", torch.float16), ("logits", torch.float64)):
        weight = batch.weight.to(dtype, copy=True).requires_grad_()
        weight.main_grad = torch.zeros(weight.shape)  # pyright: ignore[reportAttributeAccessIssue]
        hidden = 0.1 * batch.hidden.to(dtype)
        policy = (
            LMHead(hidden, weight, main_grad=True, workspace_bytes=workspace_bytes)
            if kind == "head"
            else Logits(linear(hidden, weight))
        )
        reference = TokenLogp(torch.full(batch.tokens.target_ids.shape, -3.0))
        loss_of("dpo", policy, reference, batch.tokens, beta=1e-5).loss.backward()
        gradients.append(weight.main_grad.double() if kind == "head" else weight.grad)  # pyright: ignore[reportAttributeAccessIssue]
    held, exact = gradients
    # Logits, and their gradient, are rounded to float16; coefficients of 1e-6 times hidden states of 0.1 are not.
    assert (held - exact).norm() <= 2 * torch.finfo(torch.float16).eps * exact.norm()
