"""Passes of a head over memory of the size of its weight and of its logits, and evaluations of the loss."""

import pytest
import torch
from torch import Tensor

from humanline_fused import LMHead, TokenLogp, eager
from humanline_fused.chunked_head.products import write_logits
from humanline_fused.dispatch import loss_of as dispatched_loss
from humanline_fused.layer import SequenceLoss
from humanline_fused.tokens import Tokens
from tests.head_inputs import HeadBatch, head_batch
from tests.inputs import loss_of
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
