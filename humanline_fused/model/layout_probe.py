"""Check before a run that rows with shared prefixes give the hidden states of padded rows.

Three structural tests hold in every precision: the model takes its attention from transformers' tables, a completion
changes no other one, and the model follows ``position_ids``. Then the hidden states are compared with those of padded
rows, with windows shortened so that the rows exceed them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from humanline_fused.model.fused_head import causal_lm
from humanline_fused.model.hidden_states import ROUNDINGS, Body, dropout_of, rounding
from humanline_fused.model.prefix_tree import PrefixTree, prefix_tree
from humanline_fused.model.tree_attention import attending_by

# Two prompts with their completions, two of which begin alike: the lengths of (prompt, common beginning, completion).
SHAPE = ((7, 3, 4), (7, 3, 6), (7, 0, 5), (4, 0, 6), (4, 0, 3))
PROBED_WINDOW = 5  # shorter than every sequence of SHAPE


@torch.no_grad()
def refusal(wrapped: nn.Module, model: nn.Module, token_ids: Tensor, longest: int) -> str | None:
    """Return why the model cannot run on rows with shared prefixes, in one short line, or None if it can.

    The model computes a few dozen tokens without gradient, in eval mode; it is left as it was found. With FSDP2, all
    ranks must call this alike.

    Args:
        wrapped: the trained module, placed and cast.
        model: the transformers or PEFT model in it.
        token_ids: some token ids of the data, at least two different ones, any shape, int64, on the model's device.
        longest: length of the longest sequence of the run, tokens.
    """
    model = causal_lm(model)
    reason = _refused_by_settings(model, longest)
    if reason is not None:
        return reason
    ids = token_ids.unique().cpu()
    if len(ids) < 2:
        return "its data has one token, so that nothing can be tested"
    sequences = _sequences(ids)
    with _evaluated(wrapped), _short_windows(model):
        try:
            return _refused_by_tests(Body(wrapped, model), sequences)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return f"it fails on such a row: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def extra_cost(model: nn.Module) -> str | None:
    """Return why rows with shared prefixes cost more than padded rows, in one short line, or None.

    Eager attention computes the scores of all pairs of a row's tokens: of S sequences about S times those of padded
    rows, and as much memory.
    """
    if getattr(causal_lm(model).config, "_attn_implementation", None) == "eager":
        return "attn_implementation='eager' would compute all pairs of a row's tokens"
    return None


def _refused_by_settings(model: Any, longest: int) -> str | None:
    implementation = getattr(model.config, "_attn_implementation", None)
    if implementation not in ("sdpa", "eager"):
        return f"attn_implementation={implementation!r} has no masks of this kind: use 'sdpa'"
    for config in _configs(model):
        for rope in _ropes(config):
            kind = rope.get("rope_type")
            limits = (rope.get("original_max_position_embeddings"), getattr(config, "max_position_embeddings", None))
            original = min([limit for limit in limits if limit], default=0)
            if kind in ("dynamic", "longrope") and longest > original:
                return f"its RoPE, {kind!r}, depends on the longest sequence of a batch beyond {original} tokens"
    for module in model.modules():
        probability = dropout_of(module)
        if probability > 0:
            return f"dropout {probability} is on, and a shared token would have one draw for all its sequences"
    return None


def _configs(model: nn.Module) -> list[Any]:
    """Return the different config objects of a model's modules."""
    return list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Return the RoPE settings of a config, one per type of layer or one for all."""
    given = getattr(config, "rope_parameters", None) or {}
    return [given] if "rope_type" in given else [part for part in given.values() if isinstance(part, dict)]


def _sequences(ids: Tensor) -> list[Tensor]:
    """Return sequences of the lengths in ``SHAPE`` with tokens out of ``ids``."""

    def run(length: int, offset: int) -> Tensor:
        return ids[(torch.arange(length) * (1 + offset % 5) + offset) % len(ids)]

    sequences = []
    for number, (prompt, beginning, completion) in enumerate(SHAPE):
        sequences.append(torch.cat([run(prompt, prompt), run(beginning, 2), run(completion, 3 + number)]))
    return sequences


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Set eval mode, and on exit the mode of each submodule."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def _short_windows(model: nn.Module) -> Iterator[None]:
    """Shorten sliding windows, which a model reads from its config in each forward pass."""
    windows = [(config, config.sliding_window) for config in _configs(model) if getattr(config, "sliding_window", None)]
    for config, window in windows:
        config.sliding_window = min(window, PROBED_WINDOW)
    try:
        yield
    finally:
        for config, window in windows:
            config.sliding_window = window


def _refused_by_tests(body: Body, sequences: list[Tensor]) -> str | None:
    tree = prefix_tree(sequences)
    positions = {"position_ids": tree.position_ids}
    with attending_by(tree) as call:
        hidden = body(tree.input_ids, **positions)[0]
        if not call.masks:
            return "it does not ask transformers for its attention masks"
        if not call.attentions and body.implementation == "sdpa":
            return "its attention is not transformers' own 'sdpa'"
        changed, others = _with_other_completion(tree, sequences)
        if not _unchanged(body(changed, **positions)[0][others], hidden[others]):
            return "a completion changes the hidden states of others in its row"
        shifted = tree.position_ids + (tree.position_ids > 0)
        if torch.equal(body(tree.input_ids, position_ids=shifted)[0], hidden):
            return "it does not follow position_ids"
    width = max(map(len, sequences))
    padded = torch.stack([nn.functional.pad(ids, (0, width - len(ids)), value=int(ids[0])) for ids in sequences])
    apart = body(padded)
    pairs = [(hidden[rows.to(hidden.device)], apart[i, : len(rows)]) for i, rows in enumerate(tree.rows)]
    one, other = (torch.cat(parts).double() for parts in zip(*pairs, strict=True))
    difference = ((one - other).norm() / other.norm()).item()
    if not difference <= rounding(hidden, body.dtype, body.layers):
        return f"its hidden states differ from those of padded rows by {difference:.1e} of their size"
    return None


def _with_other_completion(tree: PrefixTree, sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the row with other tokens at the end of its first sequence, and which tokens stay as they were, [N]."""
    end = tree.rows[0][-SHAPE[0][2] :]
    ids = torch.cat(sequences).unique()
    changed = tree.input_ids.clone()
    changed[0, end] = ids[(torch.searchsorted(ids, changed[0, end]) + 1) % len(ids)]
    others = torch.ones(changed.shape[1], dtype=torch.bool)
    others[end] = False
    return changed, others


def _unchanged(hidden: Tensor, before: Tensor) -> bool:
    """Return whether two hidden states are the same.

    In a mixture of experts the number of an expert's tokens may change the last bits of its products. Only float32 and
    wider leave room to tell this from a leak.
    """
    if torch.finfo(hidden.dtype).eps > torch.finfo(torch.float32).eps:
        return torch.equal(hidden, before)
    return bool((hidden - before).norm() <= ROUNDINGS * torch.finfo(hidden.dtype).eps * before.norm())
