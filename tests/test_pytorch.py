"""The losses in PyTorch: compiler, autocast, checkpointing, grad modes, no host waits, reproducible bits."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from humanline_fused import Logits, token_logp, token_logp_and_entropy
from humanline_fused.validation import values
from tests.inputs import FORMS, loss_and_gradient, loss_of, random_batch

of_every_form = pytest.mark.parametrize(("objective", "settings"), FORMS)

# Compiler


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss_and_leaf(objective, batch, impl, compiler=None, **settings):
    def loss(logits, ref_logits):
        out = loss_of(objective, Logits(logits), Logits(ref_logits), batch, impl=impl, **settings)
        return out.loss, out.unclamped_fraction

    function = loss if compiler is None else torch.compile(loss, fullgraph=True, backend=compiler)
    leaf = batch.logits.detach().clone().requires_grad_()
    value, unclamped = function(leaf, batch.ref_logits)
    value.backward()
    return value.detach(), unclamped, leaf.grad


@pytest.mark.usefixtures("fresh_compiler")
@of_every_form
def test_a_compiled_kernel_loss_has_the_bits_of_the_loss(device, objective, settings):
    batch = random_batch(device)
    expected = loss_and_leaf(objective, batch, "triton", **settings)
    compiled = loss_and_leaf(objective, batch, "triton", "aot_eager", **settings)
    assert all(torch.equal(actual, wanted) for actual, wanted in zip(compiled, expected, strict=True))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "sigmoid_norm"])
def test_every_compiled_loss_of_pairs_has_the_bits_of_the_loss(device, loss_type):
    batch, settings = random_batch(device), {"loss_type": loss_type, "label_smoothing": 0.0}
    expected = loss_and_leaf("dpo", batch, "triton", **settings)
    compiled = loss_and_leaf("dpo", batch, "triton", "aot_eager", **settings)
    assert all(torch.equal(actual, wanted) for actual, wanted in zip(compiled, expected, strict=True))


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_eager_loss_is_the_loss(device, objective):
    batch = random_batch(device)
    batch.logits[~batch.loss_mask] = torch.nan  # the compiled loss must not read rows that do not count either
    expected = loss_and_leaf(objective, batch, "eager")
    compiled = loss_and_leaf(objective, batch, "eager", "aot_eager")
    torch.testing.assert_close(compiled, expected)


@pytest.mark.usefixtures("fresh_compiler")
def test_one_graph_serves_every_length_forward_and_backward(device, impl):
    def score(logits, ids, mask):
        leaf = logits.detach().requires_grad_()
        out = token_logp_and_entropy(Logits(leaf, softcap=20.0), ids, mask, impl=impl)
        return out.logp, out.entropy, *torch.autograd.grad(out.logp.sum() - out.entropy.sum(), leaf)

    def graph(logits, ids, mask):
        out = token_logp_and_entropy(Logits(logits, softcap=20.0), ids, mask, impl=impl)
        return out.logp, out.entropy

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(graph, fullgraph=True, backend=counter, dynamic=True)
    graphs = []
    for T in (5, 6, 9):
        batch = random_batch(device, T=T)
        leaf = batch.logits.clone().requires_grad_()
        logp, entropy = compiled(leaf, batch.target_ids, batch.loss_mask)
        (gradient,) = torch.autograd.grad(logp.sum() - entropy.sum(), leaf)
        expected = score(batch.logits, batch.target_ids, batch.loss_mask)
        torch.testing.assert_close((logp, entropy, gradient), expected)
        graphs.append(counter.frame_count)
    # torch 2.11 restarts the first graph when it detects that the softcap is a constant.
    assert graphs == [graphs[0]] * 3


@pytest.mark.usefixtures("fresh_compiler")
def test_a_gradient_in_place_is_compiled_too(device, impl):
    batch = random_batch(device)
    expected = loss_and_leaf("dpo", batch, impl)

    def loss(logits, ref_logits):
        policy = Logits(logits * 1, inplace_gradient=True)
        return loss_of("dpo", policy, Logits(ref_logits), batch, impl=impl).loss

    leaf = batch.logits.clone().requires_grad_()
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(leaf, batch.ref_logits)
    value.backward()
    torch.testing.assert_close((value.detach(), leaf.grad), (expected[0], expected[2]))


# Grad modes, autocast, checkpointing


class Calls(TorchDispatchMode):
    """Records the names of humanline's operators, and their last argument."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "humanline":
            self.seen.append((func._opname, args[-1]))
        return func(*args, **(kwargs or {}))


@of_every_form
def test_without_a_gradient_no_work_is_done_for_one(device, objective, settings):
    batch = random_batch(device)
    policy = Logits(batch.logits.requires_grad_())
    with Calls() as calls, torch.no_grad():
        loss_of(objective, policy, Logits(batch.ref_logits), batch, impl="triton", **settings)
    assert calls.seen == [("token_logp_forward", False), (f"{objective}_loss", False)]
    with Calls() as calls:
        loss_of(objective, policy, Logits(batch.ref_logits), batch, impl="triton").loss.backward()
    assert calls.seen[:2] == [("token_logp_forward", False), (f"{objective}_loss", True)]
    assert calls.seen[2][0] == "token_logp_backward"


def test_inference_mode_gives_the_same_loss(device, objective, impl):
    batch = random_batch(device)
    expected, _ = loss_and_gradient(objective, batch, impl=impl)
    with torch.inference_mode():
        out = loss_of(objective, Logits(batch.logits), Logits(batch.ref_logits), batch, impl=impl)
    assert torch.equal(out.loss, expected["loss"])


def test_autocast_changes_nothing(device, objective, impl):
    batch = random_batch(device)
    expected, expected_gradient = loss_and_gradient(objective, batch, impl=impl)
    with torch.autocast(device.type, torch.bfloat16):
        out, gradient = loss_and_gradient(objective, batch, impl=impl)
    assert torch.equal(out["loss"], expected["loss"])
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_loss_has_the_same_gradient(device, objective, impl, use_reentrant):
    batch = random_batch(device)
    _, expected = loss_and_gradient(objective, batch, impl=impl)
    leaf = batch.logits.clone().requires_grad_()

    def loss(logits):
        return loss_of(objective, Logits(logits * 1), Logits(batch.ref_logits), batch, impl=impl).loss

    checkpoint(loss, leaf, use_reentrant=use_reentrant).backward()
    assert torch.equal(leaf.grad, expected)


# Nothing waits for the device


@pytest.fixture
def launches(monkeypatch):
    """Grids of the kernels that would be launched; a launch itself does not wait."""
    from humanline_kernels import dlogits, dpo_loss, grpo_loss, grpo_one_launch, kto_loss
    from humanline_kernels import token_logp as token_logp_module

    grids = []

    class Kernel:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **kwargs: None

    for module in (dlogits, dpo_loss, grpo_loss, grpo_one_launch, kto_loss, token_logp_module):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Kernel())
    return grids


@pytest.mark.parametrize("packed", [False, True])
@of_every_form
def test_neither_forward_nor_backward_reads_a_value_on_the_host(
    device, objective, settings, packed, launches, monkeypatch
):
    batch = random_batch(device)
    if packed:
        settings = settings | {"cu_seqlens": torch.tensor([0, 3, 10, 15, 20], dtype=torch.int32, device=device)}
        rows = {name: getattr(batch, name) for name in ("logits", "ref_logits", "target_ids", "loss_mask")}
        batch = replace(batch, **{name: value.flatten(0, 1)[None] for name, value in rows.items()})
    monkeypatch.setattr(values, "may_look_at", lambda tensor: False)  # as on a GPU
    for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, mock.Mock(side_effect=AssertionError(f"Tensor.{name} waits")))
    leaf = batch.logits.requires_grad_()
    out = loss_of(objective, Logits(leaf), Logits(batch.ref_logits), batch, impl="triton", **settings)
    assert out.unclamped_fraction is not None
    out.loss.backward()
    assert leaf.grad is not None
    assert len(launches) >= 2


@of_every_form
def test_grids_have_one_axis_which_may_be_longer_than_65535(device, objective, settings, launches):
    batch = random_batch(device, B=2, T=2**15 + 1, V=2)
    leaf = batch.logits.requires_grad_()
    loss_of(objective, Logits(leaf), Logits(batch.ref_logits), batch, impl="triton", **settings).loss.backward()
    assert {len(grid) for grid in launches} == {1}
    assert max(grid[0] for grid in launches) > 2**16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there are no CUDA graphs without CUDA")
@of_every_form
def test_a_loss_and_its_gradient_are_captured_in_a_cuda_graph(device, objective, settings):
    batch = random_batch(device)
    leaf = batch.logits.detach().clone().requires_grad_()

    def step():
        out = loss_of(objective, Logits(leaf), Logits(batch.ref_logits), batch, impl="triton", **settings)
        return out.loss, *torch.autograd.grad(out.loss, leaf)

    expected = [tensor.clone() for tensor in step()]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor in captured:
        tensor.detach().fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


# The same bits


@of_every_form
def test_the_same_input_gives_the_same_bits(device, objective, settings):
    batch = random_batch(device, B=4, T=3, V=300, dtype=torch.bfloat16)
    runs = [loss_and_gradient(objective, batch, impl="triton", **settings) for _ in range(3)]
    for out, gradient in runs[1:]:
        assert all(torch.equal(out[name], runs[0][0][name]) for name in out)
        assert torch.equal(gradient, runs[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_s_bits_do_not_depend_on_its_neighbours_if_8_divides_the_vocabulary(device, dtype):
    batch = random_batch(device, B=3, T=3, V=5000, dtype=dtype)
    mask = torch.ones_like(batch.loss_mask)
    whole, alone = batch.logits.clone().requires_grad_(), batch.logits[1:2, 2:3].clone().requires_grad_()
    scored = token_logp(Logits(whole), batch.target_ids, mask, impl="triton")
    row = token_logp(Logits(alone), batch.target_ids[1:2, 2:3], mask[1:2, 2:3], impl="triton")
    scored.sum().backward()
    row.sum().backward()
    assert torch.equal(scored[1:2, 2:3], row)
    assert torch.equal(whole.grad[1:2, 2:3], alone.grad)
