"""Attention by segments is attention along each sequence, in blocks of queries and in one call."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from humanline_fused.model import segment_attention
from humanline_fused.model.prefix_tree import prefix_tree
from humanline_fused.model.segment_attention import BLOCK, Block, SegmentAttention
from tests.error_budget import assert_within_budget

ROWS = [7, 8, 9, 1, 1], [7, 8, 9, 2], [7, 8, 9, 2, 4, 5, 6], [7, 8, 9, 2, 4, 5, 0], [3, 3, 3]


def attention_of(window: int | None, *rows: list[int]) -> SegmentAttention:
    return SegmentAttention(prefix_tree([torch.tensor(row) for row in rows]), window)


def sees(attention: SegmentAttention) -> list[list[int]]:
    return (attention.tensor_mask(torch.float32, "cpu")[0, 0] == 0).int().tolist()


def row_inputs(tokens: int, dtype: torch.dtype = torch.float32, key_heads: int = 1) -> list[Tensor]:
    """Return queries with two heads, keys and values, with the strides of a model's projections."""
    generator = torch.Generator().manual_seed(0)
    heads = 2, key_heads, key_heads
    return [torch.randn(1, tokens, n, 8, generator=generator).to(dtype).transpose(1, 2) for n in heads]


class LargestTensor(TorchDispatchMode):
    """Attributes: elements: the number of elements of the largest tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def with_gradients(attend: Any, inputs: list[Tensor]) -> Tensor:
    """Return the result and its gradients, in one vector."""
    inputs = [part.detach().requires_grad_() for part in inputs]
    result = attend(*inputs)
    parts = [result, *torch.autograd.grad(result.square().sum(), inputs)]
    return torch.cat([part.flatten() for part in parts])


def varlen_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """Do what torch's ``varlen_attn`` documents, [T, heads, head size], causal where the last token sees all keys."""
    assert window_size[1] == 0
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    starts = [cu_seq_q.tolist(), cu_seq_k.tolist()]
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    parts = []
    for (q, q_stop), (k, k_stop) in zip(*map(pairwise, starts), strict=True):
        distance = torch.arange(k_stop - k - q_stop + q, k_stop - k)[:, None] - torch.arange(k_stop - k)
        seen = (distance >= 0) & ((distance <= window_size[0]) | (window_size[0] < 0))
        heads = (tensor.transpose(0, 1) for tensor in (query[q:q_stop], key[k:k_stop], value[k:k_stop]))
        part = scaled_dot_product_attention(*heads, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
        parts.append(part.transpose(0, 1))
    return torch.cat(parts)


# By hand


@pytest.mark.parametrize(
    ("window", "seen"),
    [
        (None, [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]),
        (2, [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]),
    ],
)
def test_a_token_sees_its_path_within_the_window_and_no_other_branch(window: int | None, seen: list[list[int]]):
    assert sees(attention_of(window, [7, 8, 1, 2], [7, 8, 3])) == seen


def test_a_tensor_mask_hides_with_the_least_number_of_the_models_dtype():
    mask = attention_of(None, [7, 1], [7, 2]).tensor_mask(torch.bfloat16, "cpu")
    assert mask.dtype == torch.bfloat16
    assert mask.unique().tolist() == [torch.finfo(torch.bfloat16).min, 0]


def test_keys_after_a_block_and_before_its_window_are_not_computed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(segment_attention, "BLOCK", 2)
    assert attention_of(None, [7, 8, 9, 1, 1]).blocks == [[Block(1, 0, 1), Block(2, 0, 3), Block(2, 0, 5)]]
    assert attention_of(3, *ROWS[:2]).blocks == [[Block(1, 0, 1), Block(2, 0, 3)], [Block(2, 1, 5)], [Block(1, 1, 4)]]


# Against the attention of each sequence


@pytest.mark.parametrize("block", [2, 128])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("key_heads", [1, 2])
def test_a_row_has_the_attention_of_its_sequences(
    monkeypatch: pytest.MonkeyPatch, block: int, window: int | None, key_heads: int
):
    monkeypatch.setattr(segment_attention, "BLOCK", block)
    monkeypatch.setattr(segment_attention, "varlen_attn", varlen_reference)
    attention = attention_of(window, *ROWS)
    tree = prefix_tree([torch.tensor(row) for row in ROWS])

    def by_sequence(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.zeros(query.transpose(1, 2).shape, dtype=query.dtype)
        for rows in tree.rows:
            distance = torch.arange(len(rows))[:, None] - torch.arange(len(rows))
            seen = (distance >= 0) & (distance < (window or 99))
            heads = (tensor[:, :, rows] for tensor in (query, key, value))
            part = scaled_dot_product_attention(*heads, attn_mask=seen, scale=0.7, enable_gqa=True)
            result = result.index_copy(1, rows, part.transpose(1, 2))
        return result

    inputs = row_inputs(tree.input_ids.shape[1], key_heads=key_heads)
    exact = with_gradients(by_sequence, [part.double() for part in inputs])
    eager = with_gradients(by_sequence, inputs)
    for attend in (attention.by_blocks, attention.in_one_call):
        result = with_gradients(partial(attend, scaling=0.7), inputs)
        assert_within_budget(result, eager, exact, "attention")


def test_one_call_gets_the_lengths_of_segments_and_of_paths(monkeypatch: pytest.MonkeyPatch):
    attention, seen = attention_of(3, *ROWS[:3]), {}

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        seen["args"], seen["kwargs"] = args, kwargs
        return varlen_reference(*args, **kwargs)

    query, key, value = row_inputs(9)
    monkeypatch.setattr(segment_attention, "varlen_attn", attend)
    attention.in_one_call(query, key, value, 0.5)
    queries, keys, _, *lengths = seen["args"]
    assert [part.tolist() if isinstance(part, Tensor) else part for part in lengths] == [
        [0, 3, 5, 9],
        [0, 3, 8, 15],
        4,
        7,
    ]
    assert torch.equal(queries, query[0].transpose(0, 1))
    assert torch.equal(keys, key[0].transpose(0, 1)[[*range(3), *range(5), *range(3), *range(5, 9)]])
    assert seen["kwargs"] == {"scale": 0.5, "window_size": (2, 0), "enable_gqa": True}


def causal_from_the_first_key(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Let query i see keys 0 to i, as torch's causal attention does where there are more keys than queries."""
    starts_q, starts_k, *_ = args
    used = torch.cat([k + torch.arange(n) for k, n in zip(starts_k[:-1], starts_q.diff(), strict=True)])
    return varlen_reference(query, key[used], value[used], starts_q, starts_q, args[2], args[2], **kwargs)


def absent(*args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def without_window(*args: Any, window_size: tuple[int, int], **kwargs: Any) -> Tensor:
    return varlen_reference(*args, window_size=(-1, 0), **kwargs)


@pytest.mark.parametrize(
    ("given", "used"),
    [(varlen_reference, True), (causal_from_the_first_key, False), (without_window, False), (absent, False)],
)
def test_a_varlen_function_is_used_only_if_it_agrees_with_blocks(
    monkeypatch: pytest.MonkeyPatch, given: Callable[..., Tensor], used: bool
):
    monkeypatch.setattr(segment_attention, "varlen_attn", given)
    agrees = segment_attention._varlen_agrees.__wrapped__
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert agrees(torch.device("cpu"), torch.bfloat16, 4, 2, 16) is used


def test_autocast_is_followed():
    attention = attention_of(None, *ROWS)
    inputs = row_inputs(13)
    with torch.autocast("cpu", torch.bfloat16):
        result = attention(*inputs)
    assert torch.equal(result, attention(*(part.bfloat16() for part in inputs)))


def test_no_block_makes_a_mask_of_all_tokens_of_a_long_sequence():
    long = [1] * 2000
    attention = attention_of(None, long)
    inputs = row_inputs(len(long))
    with LargestTensor() as made:
        attention.by_blocks(*inputs)
    assert made.elements <= BLOCK * (len(long) + BLOCK)
