"""Bytes that autograd keeps of a forward pass, found by running the model without memory for its tensors."""

import logging
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.modeling_layers import GradientCheckpointingLayer

from humanline_fused.model.fused_head import causal_lm

LENGTHS = (64, 128)
"""Tokens of the two passes that the bytes of a token are found from."""


@dataclass(frozen=True)
class Saved:
    """Bytes that are kept from the forward pass to the backward pass.

    Attributes:
        casts: weights cast to the data type of the computation, whatever the number of tokens.
        per_token: activations of a token.
        per_token_checkpointed: the same with gradient checkpointing: each layer's input, and all of the largest layer.
        largest: bytes of a token in the largest activation.
    """

    casts: float
    per_token: float
    per_token_checkpointed: float
    largest: float


class _FlashAttention(torch.autograd.Function):
    """Attention that keeps what the flash kernels keep: its inputs, its output and a log-sum-exp of each row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **settings: Any) -> Tensor:
    result: Any = _FlashAttention.apply(query, key, value)
    return result


def saved_activations(model: nn.Module, computed: torch.dtype) -> Saved:
    """Return what a training pass through the body of a model keeps.

    Args:
        model: a causal language model on the meta device, with sdpa attention. Its tensors are replaced by fake ones.
        computed: data type of the computation, by autocast.

    Raises:
        ValueError: the model's forward pass depends on the values of its tensors.
    """
    with FakeTensorMode():  # unlike the meta device it has autocast
        _fake_(model)
        short, long = (_pass(model, length, computed) for length in LENGTHS)
    step = LENGTHS[1] - LENGTHS[0]
    whole, checkpointed, largest = ((after - before) / step for before, after in zip(short, long, strict=True))
    return Saved(max(0.0, short[0] - whole * LENGTHS[0]), whole, checkpointed, largest)


def _fake_(model: nn.Module) -> None:
    """Replace parameters and buffers on the meta device by fake ones on the CPU; shared ones stay shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
                module._parameters[name] = cast(nn.Parameter, made.setdefault(id(parameter), fake))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(id(buffer), torch.empty(buffer.shape, dtype=buffer.dtype))


def _pass(model: nn.Module, tokens: int, computed: torch.dtype) -> tuple[int, int, int]:
    """Return the bytes kept of one pass, without and with gradient checkpointing, and those of the largest tensor."""
    decoder: Any = causal_lm(model).get_decoder()
    known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no storage takes the place of another
    layer_of: dict[int, int] = {}
    inputs: dict[int, int] = {}
    current = -1

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in known and storage not in kept:
            kept[storage], layer_of[storage] = tensor, current
        return tensor

    def enter(number: int, layer: nn.Module, given: tuple[Any, ...]) -> None:
        nonlocal current
        current = number
        inputs[number] = sum(_bytes(tensor) for tensor in given if isinstance(tensor, Tensor))

    def leave(*_: Any) -> None:
        nonlocal current
        current = -1

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    hooks = []
    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(partial(enter, number)))
        hooks.append(layer.register_forward_hook(leave))
    try:
        with (
            patch.object(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True),  # it prints a traceback
            patch.object(F, "scaled_dot_product_attention", _attention),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", computed, enabled=computed != torch.float32),
        ):
            decoder(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    except Exception as error:
        raise ValueError(
            f"the activations of {type(causal_lm(model)).__name__} cannot be computed from its config: its forward "
            f"pass needs numbers ({type(error).__name__})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    by_layer: dict[int, int] = defaultdict(int)
    for storage, tensor in kept.items():
        by_layer[layer_of[storage]] += _bytes(tensor)
    outside = by_layer.pop(-1, 0)
    whole = outside + sum(by_layer.values())
    checkpointed = outside + sum(inputs.values()) + max(by_layer.values(), default=0)
    of_tokens = (tensor for tensor in kept.values() if tokens in tensor.shape)  # not a weight that was cast
    return whole, checkpointed, max(map(_bytes, of_tokens), default=0)


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
