"""Passes of a head over memory of the size of its weight and of its logits, and evaluations of the loss."""

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from humanline_fused import LMHead, TokenLogp, eager
from humanline_fused.chunked_head.chunks import capacity_of
from humanline_fused.chunked_head.products import write_logits
from humanline_fused.dispatch import loss_of as dispatched_loss
from humanline_fused.layer import SequenceLoss
from humanline_fused.tokens import Tokens
from humanline_fused.validation import values
from tests.head_inputs import HeadBatch, head_batch
from tests.inputs import loss_of
from tests.launch_counter import Launches
from tests.traffic import Traffic

H, V = 16, 40
CPU = torch.device("cpu")
GIVEN = TokenLogp(torch.full((4, 6), -4.0))


def batch_of(dtype: torch.dtype) -> HeadBatch:
    return head_batch(CPU, H=H, V=V, bias=False).to(dtype)


def test_bytes_are_those_that_an_operation_reads_and_writes():
    a, b, other = torch.ones(3, 2), torch.ones(2, 5), torch.ones(3, 5)
    with Traffic((3, 5), other) as traffic:
        total = torch.zeros(3, 5)
        assert (traffic.read, traffic.written) == (0, 60)
        total.addmm_(a, b)
        assert (traffic.read, traffic.written) == (60, 120)
        torch.mm(a, b, out=total)
        total.addmm_(a, b, beta=0)
        assert (traffic.read, traffic.written) == (60, 240)
        (total.view(3, 5) + other).to(torch.float16)
        assert (traffic.read, traffic.written) == (180, 330)
        torch.empty(3, 5)
    assert traffic.total == 510


@pytest.mark.parametrize(("capacity", "num_chunks"), [(8, 2), (4, 4)])
def test_the_first_chunk_writes_the_weights_gradient_and_the_others_add_to_it(capacity: int, num_chunks: int):
    batch = batch_of(torch.bfloat16)
    assert -(-int(batch.tokens.loss_mask.sum()) // capacity) == num_chunks
    policy = LMHead(batch.hidden, batch.weight.requires_grad_(), workspace_bytes=capacity * V * 2)
    with Traffic((V, H), batch.weight) as traffic:
        loss_of("grpo", policy, GIVEN, batch.tokens).loss.backward()
    first, further, cast = 4, 4 + 4, 4 + 2
    assert traffic.total == (first + further * (num_chunks - 1) + cast) * V * H


def test_float16_writes_the_weights_gradient_of_one_chunk_once_before_its_cast():
    batch = batch_of(torch.float16)
    policy = LMHead(batch.hidden, batch.weight.requires_grad_())
    with Traffic((V, H), batch.weight) as traffic:
        loss_of("dpo", policy, GIVEN, batch.tokens).loss.backward()
    assert traffic.total == (4 + 4 + 2) * V * H


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_float32_logits_are_written_once_and_not_read(dtype: torch.dtype):
    hidden, weight = torch.ones(5, H, dtype=dtype), torch.ones(V, H, dtype=dtype)
    logits = torch.full((5, V), torch.nan)
    with Traffic((5, V)) as traffic:
        write_logits(logits, hidden, weight, None)
    assert (traffic.read, traffic.written) == (0, logits.nbytes)
    assert (logits == H).all()


@pytest.mark.parametrize(("capacity", "evaluations"), [(None, 1), (8, 2), (4, 4)])
def test_the_loss_is_evaluated_once_a_chunk(capacity: int | None, evaluations: int):
    batch = batch_of(torch.float32)
    seen: list[bool] = []

    def negative_mean(logp: Tensor, ref_logp: Tensor) -> SequenceLoss:
        seen.append(logp.requires_grad)
        nothing = logp.new_empty(0)
        return SequenceLoss((ref_logp - logp).sum() / len(logp), nothing, nothing, nothing)

    workspace_bytes = None if capacity is None else capacity * V * 4
    policy = LMHead(batch.hidden, batch.weight.requires_grad_(), workspace_bytes=workspace_bytes)
    tokens = Tokens(batch.tokens.target_ids, batch.tokens.loss_mask)
    scored = dispatched_loss(eager, policy, GIVEN, tokens, negative_mean)
    assert seen == evaluations * [True]
    scored.result.loss.backward()
    assert torch.equal(scored.result.loss, (scored.ref_logp - scored.logp).sum() / 4)
    assert not scored.logp.requires_grad


def test_the_loss_of_one_chunk_launches_little_besides_its_products_kernels_and_loss(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(values, "may_look_at", lambda tensor: False)  # as on a GPU
    batch = batch_of(torch.float32)
    policy = LMHead(batch.hidden.requires_grad_(), batch.weight.requires_grad_())
    with Launches() as launches:
        for name in ("score_and_write_dlogits_", "dpo_loss"):
            monkeypatch.setattr(eager, name, launches.uncounted(getattr(eager, name)))
        monkeypatch.setattr(torch.autograd, "grad", launches.uncounted(torch.autograd.grad))
        loss = loss_of("dpo", policy, GIVEN, batch.tokens, impl="eager").loss
        forward = len(launches.seen)
        loss.backward()
    # The rows; the reference's log-probs at 0 where masked (2); ids, hidden states, logits; log-probs per token (2);
    # the coefficients of the rows, and of 1 for dlogits.
    assert forward <= 10, launches.seen[:forward]
    # Two products, the hidden states again, and their scaled rows in a gradient of zeros.
    assert len(launches.seen) - forward <= 11, launches.seen[forward:]
    assert launches.seen.count("mm") == 3


def test_a_head_of_kernels_calls_no_operator_of_torchs_for_them(monkeypatch: pytest.MonkeyPatch):
    batch, called = batch_of(torch.float32), list[str]()
    monkeypatch.setattr(CustomOpDef, "__call__", lambda operator, *_: called.append(operator._name))
    for frozen in (False, True):
        policy = LMHead(batch.hidden.requires_grad_(), batch.weight.requires_grad_(not frozen))
        loss_of("dpo", policy, GIVEN, batch.tokens, impl="triton").loss.backward()
    assert called == []


def test_the_chunks_are_those_of_the_memory_that_is_free_at_the_time(monkeypatch: pytest.MonkeyPatch):
    free, unused = [2**34], [0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 2**36))
    counts = {"reserved_bytes": lambda: 2**30 + unused[0], "allocated_bytes": lambda: 2**30}
    monkeypatch.setattr(
        torch.cuda,
        "memory_stats_as_nested_dict",
        lambda device: {name: {"all": {"current": count()}} for name, count in counts.items()},
    )
    device, row_bytes = torch.device("cuda", 99), 2**18
    for _ in range(20):
        assert capacity_of(None, row_bytes, device) == 2**31 // row_bytes
    assert capacity_of(None, 2**21, device) == 2**32 // 2**21
    free[0] = 2**31  # the optimizer's state came
    assert capacity_of(None, row_bytes, device) == 2**30 // row_bytes
    unused[0] = 2**30
    assert capacity_of(None, row_bytes, device) == 3 * 2**29 // row_bytes
    assert capacity_of(2**20, row_bytes, device) == 4
    assert capacity_of(None, row_bytes, torch.device("cpu")) == 2**27 // row_bytes


def test_the_driver_is_not_asked_where_the_allocator_has_enough(monkeypatch: pytest.MonkeyPatch):
    counts = {"reserved_bytes": {"all": {"current": 2**33}}, "allocated_bytes": {"all": {"current": 2**32}}}
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: counts)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: pytest.fail("asked"))
    assert capacity_of(None, 2**18, torch.device("cuda", 99)) == 2**31 // 2**18
