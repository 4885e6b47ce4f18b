"""Attention in a row that holds a prefix tree: each segment attends to its context and, causally, to itself.

A transformers model asks two tables for its attention: one makes the mask, the other computes with it. Their entries
are replaced once per process by functions that do the same as before, except in a forward pass inside
:func:`attending_by`: then the mask is an object that carries the segments, and attention goes segment by segment when
it receives that object. No model code is replaced and no table of architectures is needed. The mask is an argument of
each layer, so a layer that gradient checkpointing computes again has it, wherever that happens.

``attn_implementation="eager"`` has no entry in the second table, so it gets a tensor mask of N² elements.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from humanline_fused.model.prefix_tree import PrefixTree
from humanline_fused.model.segment_attention import SegmentAttention

# Arguments of an attention function that this one does not compute with: it refuses them if they are set.
UNSUPPORTED = ("softcap", "position_bias", "s_aux", "cache")


class Attending:
    """One forward pass over a row.

    Attributes:
        tree: the row.
        thread: the thread that runs it; forward passes of others keep their own masks.
        masks: number of masks that the model asked for.
        attentions: number of attention layers that received such a mask, 0 with ``eager``.
    """

    def __init__(self, tree: PrefixTree) -> None:
        self.tree = tree
        self.thread = get_ident()
        self.masks = self.attentions = 0


# Not a ContextVar: torch.compile would end the graph of every forward pass where it is read.
_current: list[Attending] = []


@contextmanager
def attending_by(tree: PrefixTree) -> Iterator[Attending]:
    """Let the forward passes inside attend along the paths of a tree.

    The model must get ``tree.input_ids`` and ``tree.position_ids``, no attention mask and no cache, and must ask
    transformers for its masks: :func:`humanline_fused.model.layout_probe.refusal` finds out. Its parameters and its
    later forward passes are untouched.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from humanline_fused.model.prefix_tree import prefix_tree
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes)).eval()
    >>> sequences = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 1]])
    >>> tree = prefix_tree(list(sequences))
    >>> with attending_by(tree):
    ...     logits = model(input_ids=tree.input_ids, position_ids=tree.position_ids, use_cache=False).logits
    >>> logits.shape
    torch.Size([1, 6, 11])
    >>> torch.allclose(logits[0, tree.rows[1]], model(input_ids=sequences).logits[1], atol=1e-6)
    True
    """
    _register()
    call = Attending(tree)
    _current.append(call)
    try:
        yield call
    finally:
        _current.remove(call)


@contextmanager
def attending_as_ever() -> Iterator[None]:
    """Inside :func:`attending_by`, let the forward passes of this thread attend without the tree: those of a loss."""
    mine = [call for call in _current if call.thread == get_ident()]
    for call in mine:
        _current.remove(call)
    try:
        yield
    finally:
        _current.extend(mine)


class TreeMask:
    """The mask of the layers with one window.

    Attributes:
        call: the forward pass.
        attention: computes with the mask.
    """

    def __init__(self, call: Attending, window: int | None) -> None:
        self.call, self.attention = call, SegmentAttention(call.tree, window)


def _register() -> None:
    """Replace the entries of transformers' tables, once."""
    for name, as_tensor in {"sdpa": False, "eager": True}.items():
        own = ALL_MASK_ATTENTION_FUNCTIONS[name]
        if not hasattr(own, "replaces"):
            ALL_MASK_ATTENTION_FUNCTIONS[name] = _mask_function(own, as_tensor)
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if not hasattr(own, "replaces"):
        ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention_function(own)


def _mask_function(own: Callable[..., Any], as_tensor: bool) -> Callable[..., Any]:
    """Return a function that makes the mask of the current tree, or without one what ``own`` makes."""

    @torch.compiler.disable
    def of_thread(*args: Any, **kwargs: Any) -> Any:
        call = next((call for call in reversed(_current) if call.thread == get_ident()), None)
        return own(*args, **kwargs) if call is None else _tree_mask(call, as_tensor, *args, **kwargs)

    def make_mask(*args: Any, **kwargs: Any) -> Any:
        return of_thread(*args, **kwargs) if _current else own(*args, **kwargs)

    cast(Any, make_mask).replaces = own
    return make_mask


def _tree_mask(
    call: Attending,
    as_tensor: bool,
    batch_size: int,
    q_length: int,
    kv_length: int,
    *_: Any,
    local_size: int | None = None,
    use_vmap: bool = False,
    config: Any = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **__: Any,
) -> TreeMask | Tensor:
    """Return the mask of the current tree for a model that asks for one with these arguments.

    Raises:
        ValueError: the model does not run on the row, or asks for another mask than a causal one.
    """
    row = call.tree.input_ids.shape[1]
    if (batch_size, q_length, kv_length) != (1, row, row):
        raise ValueError(
            f"expected the {row} tokens of the tree in one row and as many keys, got {batch_size} x {q_length} and "
            f"{kv_length} keys"
        )
    if use_vmap:
        raise ValueError("the model adds a mask of its own to the causal one")
    if local_size is not None and local_size == getattr(config, "attention_chunk_size", None):
        raise ValueError("the model attends in chunks, which begin at fixed positions")
    call.masks += 1
    mask = TreeMask(call, local_size)
    return mask.attention.tensor_mask(dtype, device) if as_tensor else mask


def _attention_function(own: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that attends by segments if its mask has some, else as ``own`` does."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        if not isinstance(attention_mask, TreeMask):
            return own(module, query, key, value, attention_mask, **kwargs)
        refused = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
        refused += ["dropout"] * (kwargs.get("dropout", 0.0) > 0)
        if refused:
            raise ValueError(f"attention by segments has no {', '.join(refused)}")
        heads = query, key, value
        return _attend(attention_mask, *heads, kwargs.get("scaling")), None  # pyright: ignore[reportCallIssue]

    cast(Any, attend).replaces = own
    return attend


@torch.compiler.disable  # a graph would hold for this tree only
def _attend(mask: TreeMask, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    mask.call.attentions += 1
    return mask.attention(query, key, value, scaling)
