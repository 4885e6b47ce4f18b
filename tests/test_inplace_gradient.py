"""Logits(..., inplace_gradient=True): dlogits overwrites the logits, and autograd detects misuse."""

import pytest
import torch

from humanline_fused import Logits, TokenLogp, token_logp, token_logp_and_entropy
from tests.inputs import loss_and_gradient, loss_of, random_batch


def overwritable(logits):
    """Return a leaf, and logits computed from it by an operation whose backward does not need them."""
    leaf = logits.detach().clone().requires_grad_()
    return leaf, leaf * 1


def backward_in_place(objective, batch, impl, **settings):
    leaf, logits = overwritable(batch.logits)
    policy = Logits(logits, inplace_gradient=True)
    out = loss_of(objective, policy, Logits(batch.ref_logits), batch, impl=impl, **settings)
    out.loss.backward()
    return out, leaf, logits


# Value and gradient


@pytest.mark.parametrize("V", [37, 64])
def test_the_gradient_has_the_bits_of_the_one_beside_the_logits(device, objective, impl, V):
    batch = random_batch(device, V=V)
    expected, gradient = loss_and_gradient(objective, batch, impl=impl)
    out, leaf, _ = backward_in_place(objective, batch, impl)
    assert torch.equal(out.loss, expected["loss"])
    assert torch.equal(leaf.grad, gradient)


def test_dlogits_lies_where_the_logits_lay(device, objective, impl):
    batch = random_batch(device)
    _, gradient = loss_and_gradient(objective, batch, impl=impl)
    _, _, logits = backward_in_place(objective, batch, impl)
    assert torch.equal(logits.detach(), gradient)


def test_rows_in_the_middle_of_a_larger_tensor_are_written_and_nothing_else(device, impl):
    batch = random_batch(device, V=32)
    leaf = torch.full((4, 7, 40), 5.0, device=device, requires_grad=True)
    wide = leaf * 1
    with torch.no_grad():
        wide[:, 1:6, 4:36] = batch.logits
    logits = wide[:, 1:6, 4:36]
    _, gradient = loss_and_gradient("dpo", batch, impl=impl)
    loss_of("dpo", Logits(logits, inplace_gradient=True), Logits(batch.ref_logits), batch, impl=impl).loss.backward()
    assert torch.equal(leaf.grad[:, 1:6, 4:36], gradient)
    untouched = torch.ones(wide.shape, dtype=torch.bool, device=device)
    untouched[:, 1:6, 4:36] = False
    assert (wide[untouched] == 5).all()


def test_entropy_and_softmax_settings_go_with_it(device, impl):
    batch = random_batch(device)
    gradients = []
    for inplace in (False, True):
        leaf, logits = overwritable(batch.logits)
        policy = Logits(logits, softcap=4.0, temperature=0.8, inplace_gradient=inplace)
        out = token_logp_and_entropy(policy, batch.target_ids, batch.loss_mask, impl=impl)
        (out.logp.sum() - 0.1 * out.entropy.sum()).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


# Misuse


def test_an_operation_that_needs_the_logits_in_backward_is_an_error(device, objective, impl):
    batch = random_batch(device)
    leaf = batch.logits.detach().clone().requires_grad_()
    logits = leaf.exp()  # its backward needs its result
    loss = loss_of(objective, Logits(logits, inplace_gradient=True), Logits(batch.ref_logits), batch, impl=impl).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_backward_through_overwritten_logits_is_an_error(device, objective, impl):
    batch = random_batch(device)
    _, logits = overwritable(batch.logits)
    loss = loss_of(objective, Logits(logits, inplace_gradient=True), Logits(batch.ref_logits), batch, impl=impl).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("logits_have_a_graph", [True, False])
def test_without_a_gradient_nothing_is_overwritten(device, objective, impl, logits_have_a_graph):
    batch = random_batch(device)
    with torch.set_grad_enabled(logits_have_a_graph):
        _, logits = overwritable(batch.logits)
    before = logits.detach().clone()
    with torch.no_grad():
        loss_of(objective, Logits(logits, inplace_gradient=True), Logits(batch.ref_logits), batch, impl=impl)
    assert torch.equal(logits, before)


# Errors


@pytest.mark.parametrize("view", [lambda leaf: leaf, lambda leaf: leaf.view(4, 5, 37), lambda leaf: leaf[:, :, :]])
def test_a_leaf_and_a_view_of_one_are_refused(view):
    batch = random_batch(torch.device("cpu"))
    logits = view(batch.logits.requires_grad_())
    with pytest.raises(ValueError, match=r"inplace_gradient expected the result of another operation, got a leaf or a"):
        token_logp(Logits(logits, inplace_gradient=True), batch.target_ids, batch.loss_mask)


def test_a_reference_is_refused():
    batch = random_batch(torch.device("cpu"))
    reference = Logits(batch.ref_logits, inplace_gradient=True)
    with pytest.raises(
        ValueError, match=r"reference: inplace_gradient .* got the reference's logits, which get no gradient"
    ):
        loss_of("dpo", TokenLogp(torch.zeros(4, 5)), reference, batch)


@pytest.mark.parametrize("strides", [(0, 37, 1), (37, 4, 1), (185, 36, 1)])
def test_rows_that_share_memory_are_refused(strides):
    batch = random_batch(torch.device("cpu"))
    logits = (batch.logits.requires_grad_() * 1).as_strided((4, 5, 37), strides)
    with pytest.raises(ValueError, match="inplace_gradient expected logits that do not overlap, got"):
        token_logp(Logits(logits, inplace_gradient=True), batch.target_ids, batch.loss_mask)


def test_a_vocabulary_that_is_not_in_a_piece_is_refused():
    batch = random_batch(torch.device("cpu"))
    logits = (batch.logits.requires_grad_() * 1).transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(ValueError, match="inplace_gradient expected stride 1 over the vocabulary, got"):
        token_logp(Logits(logits, inplace_gradient=True), batch.target_ids, batch.loss_mask)
