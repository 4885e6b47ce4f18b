"""Where the host waits for a GPU in a head's loss, and how it copies to it, on a pretended one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from humanline_fused import LMHead, TokenLogp
from tests.head_inputs import HeadBatch, head_batch
from tests.inputs import Batch, loss_of
from tests.pretended_gpu import PretendedGPU

H, V = 16, 40
TWO_CHUNKS = 11 * V * 4


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PretendedGPU:
    return PretendedGPU(monkeypatch)


def settings_of(objective: str) -> dict[str, Any]:
    return {"beta": 0.0} if objective == "grpo" else {}


def loss_on(gpu: PretendedGPU, batch: HeadBatch, objective: str, on_host: set[str], given: bool, **options: Any):
    """Return the loss and the weight's gradient, as CPU tensors, for a batch on the GPU.

    Args:
        on_host: names of the tensors that stay in host memory.
        given: whether the loss gets ``rows``.
    """

    def put(name: str, tensor: Tensor) -> Tensor:
        return tensor if name in on_host else gpu.put(tensor)

    tokens = batch.tokens
    names = ("target_ids", "loss_mask", "desirable", "advantages")
    packed = {} if batch.cu_seqlens is None else {"cu_seqlens": put("cu_seqlens", batch.cu_seqlens)}
    moved: Batch = replace(tokens, **{name: put(name, getattr(tokens, name)) for name in names})
    rows = put("rows", tokens.loss_mask.flatten().nonzero()[:, 0]) if given else None
    weight = gpu.put(batch.weight.detach().requires_grad_())
    policy = LMHead(gpu.put(batch.hidden.detach().requires_grad_()), weight, rows=rows, **options)
    reference = TokenLogp(gpu.put(torch.full(tokens.target_ids.shape, -4.0)))
    with gpu:
        out = loss_of(objective, policy, reference, moved, impl="eager", **settings_of(objective), **packed)
        out.loss.backward()
    assert weight.grad is not None
    return out.loss.held, weight.grad.held  # pyright: ignore[reportAttributeAccessIssue]


def batch_without_an_advantage() -> HeadBatch:
    batch = head_batch("cpu", H=H, V=V, bias=False)
    batch.tokens.advantages[1] = 0
    return batch


def test_waits_and_copies_are_seen(gpu: PretendedGPU):
    host = torch.arange(3.0)
    x = gpu.put(host)
    with gpu:
        x.sum().item()
        _ = x[x > 1]
        x.nonzero()
        x.cpu()
        x.to("cpu", non_blocking=True)
        (2 * x).exp_()
        _ = x + host.to(x.device)
        host.pin_memory().to(x.device)
        host.pin_memory().to(x.device, non_blocking=True)
    assert [wait.split()[0] for wait in gpu.waits] == ["_local_scalar_dense", "index", "nonzero", "_to_copy"]
    assert [copy.split()[0] for copy in gpu.unfinished] == ["_to_copy"]
    assert {wait.split()[-1] for wait in gpu.waits + gpu.unfinished} == {"tests/test_head_waits.py"}
    assert gpu.asynchronous == [False, False, True]


@pytest.mark.parametrize(("workspace_bytes", "waits"), [(None, 1), (TWO_CHUNKS, 2)])
def test_a_mask_on_the_gpu_costs_one_wait_and_one_for_the_sizes_of_several_chunks(
    gpu: PretendedGPU, objective: str, workspace_bytes: int | None, waits: int
):
    batch = batch_without_an_advantage()
    loss_on(gpu, batch, objective, set(), given=False, workspace_bytes=workspace_bytes or 2**20)
    assert len(gpu.waits) == (1 if objective == "grpo" else waits)
    assert gpu.asynchronous == []


@pytest.mark.parametrize("workspace_bytes", [2**20, TWO_CHUNKS])
def test_with_rows_the_host_waits_for_nothing(gpu: PretendedGPU, objective: str, workspace_bytes: int):
    # DPO and KTO need the rows of several chunks on the host.
    on_host = {"rows"} if workspace_bytes == TWO_CHUNKS else set()
    loss_on(gpu, batch_without_an_advantage(), objective, on_host, given=True, workspace_bytes=workspace_bytes)
    assert gpu.waits == []
    assert all(gpu.asynchronous)


@pytest.mark.parametrize("workspace_bytes", [2**20, TWO_CHUNKS])
def test_a_mask_in_host_memory_is_copied_once_and_the_host_waits_for_nothing(
    gpu: PretendedGPU, objective: str, workspace_bytes: int
):
    on_host = {"loss_mask", "advantages"}
    loss_on(gpu, batch_without_an_advantage(), objective, on_host, given=False, workspace_bytes=workspace_bytes)
    assert gpu.waits == []
    assert all(gpu.asynchronous)
    # The mask, the rows, and advantages or the order of the rows in chunks.
    assert len(gpu.asynchronous) <= 3


@pytest.mark.parametrize("on_host", [{"loss_mask", "advantages"}, {"loss_mask", "advantages", "cu_seqlens"}])
def test_the_host_reads_boundaries_after_their_copy_has_ended(gpu: PretendedGPU, objective: str, on_host: set[str]):
    packed = batch_without_an_advantage().packed
    loss_on(gpu, packed, objective, on_host, given=False, workspace_bytes=TWO_CHUNKS)
    # A pair's or a sequence's rows are ordered on the host.
    assert len(gpu.waits) == (objective != "grpo" and "cu_seqlens" not in on_host)
    assert gpu.unfinished == []


@pytest.mark.parametrize("on_host", [set(), {"loss_mask"}, {"loss_mask", "advantages"}])
def test_the_pretended_gpu_gives_the_loss_and_gradient_of_the_cpu(gpu: PretendedGPU, objective: str, on_host: set[str]):
    batch = batch_without_an_advantage()
    batch.hidden[~batch.tokens.loss_mask] = torch.nan
    loss, gradient = loss_on(gpu, batch, objective, on_host, given=False, workspace_bytes=TWO_CHUNKS)
    weight = batch.weight.requires_grad_()
    policy = LMHead(batch.hidden.requires_grad_(), weight, workspace_bytes=TWO_CHUNKS)
    given = TokenLogp(torch.full((4, 6), -4.0))
    expected = loss_of(objective, policy, given, batch.tokens, impl="eager", **settings_of(objective)).loss
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, weight.grad)
