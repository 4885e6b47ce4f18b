"""From sources of scores to log-probs: who computes them, and in how many passes. No mathematics."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from humanline_fused import eager
from humanline_fused.chunked_head import Epilogue, head_logp, head_loss, in_blocks, needs_of, rows_of, work_of
from humanline_fused.impl import choose_impl
from humanline_fused.scores import LMHead, Logits, Scores, TokenLogp
from humanline_fused.softmax import softmax_of
from humanline_fused.tokens import Tokens
from humanline_fused.types import Impl

F = TypeVar("F", bound=Callable[..., Any])


def _deciding(*sources: Scores | None) -> list[Tensor]:
    """Logits and hidden states decide: log-probs beside them follow their precision."""
    models = [s.logits if isinstance(s, Logits) else s.hidden for s in sources if isinstance(s, Logits | LMHead)]
    return models or [s.logp for s in sources if isinstance(s, TokenLogp)]


def accumulation_dtype(*sources: Scores | None) -> torch.dtype:
    """In which log-probs and losses are computed."""
    double = any(tensor.dtype == torch.float64 for tensor in _deciding(*sources))
    return torch.float64 if double else torch.float32


def layer_for(impl: Impl, *sources: Scores | None) -> ModuleType:
    """The module that computes."""
    tensors = _deciding(*sources)
    dtype = tensors[0].dtype
    if accumulation_dtype(*sources) == torch.float64:
        dtype = torch.float64
    choice = choose_impl(impl, tensors[0].device, dtype)
    if choice.impl == "eager":
        return eager
    from humanline_fused import autograd

    return autograd


def _same_softmax(policy: Logits | LMHead, reference: Logits | LMHead) -> bool:
    if isinstance(policy.temperature, Tensor) or isinstance(reference.temperature, Tensor):
        if policy.temperature is not reference.temperature:
            return False
    elif policy.temperature != reference.temperature:
        return False
    return (policy.softcap, policy.scale) == (reference.softcap, reference.scale)


def _alike(policy: Scores, reference: Scores) -> bool:
    """Whether both sides are logits that one launch can read."""
    if not isinstance(policy, Logits) or not isinstance(reference, Logits):
        return False
    return policy.logits.dtype == reference.logits.dtype and _same_softmax(policy, reference)


def _share_a_head(policy: LMHead, reference: Scores) -> bool:
    """Whether both sides' hidden states may go through one product."""
    if not isinstance(reference, LMHead) or policy.hidden.dtype != reference.hidden.dtype:
        return False
    same = policy.weight is reference.weight and policy.bias is reference.bias and policy.group is reference.group
    return same and policy.fp32_logits == reference.fp32_logits and _same_softmax(policy, reference)


def score_both(layer: ModuleType, policy: Scores, reference: Scores, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """``logp`` with a graph and ``ref_logp`` without, [B, T], in one dtype; one pass where both sides are alike."""
    if _alike(policy, reference):
        assert isinstance(policy, Logits)
        assert isinstance(reference, Logits)
        settings = *softmax_of(policy), False, policy.inplace_gradient
        logp, _, ref_logp = layer.token_logp(
            policy.logits, reference.logits, tokens.target_ids, tokens.loss_mask, *settings
        )
        return logp, ref_logp
    if isinstance(policy, LMHead) and _share_a_head(policy, reference):
        assert isinstance(reference, LMHead)
        logp, _, ref_logp = _score_head(layer, policy, tokens, reference)
        return logp, ref_logp
    ref_logp = _score_reference(layer, reference, tokens)
    logp = score(layer, policy, tokens)
    dtype = _common_dtype(policy, reference, logp.dtype, ref_logp.dtype)
    return logp.to(dtype), ref_logp.to(dtype)


def _common_dtype(policy: Scores, reference: Scores, logp: torch.dtype, ref_logp: torch.dtype) -> torch.dtype:
    """A model's dtype before that of log-probs that were given."""
    if not isinstance(policy, TokenLogp):
        return logp
    return torch.promote_types(logp, ref_logp) if isinstance(reference, TokenLogp) else ref_logp


def score(layer: ModuleType, scores: Scores, tokens: Tokens) -> Tensor:
    """``logp`` with a graph, [B, T]."""
    if isinstance(scores, TokenLogp):
        dtype = torch.promote_types(scores.logp.dtype, torch.float32)
        return scores.logp.to(dtype).where(tokens.loss_mask, 0.0)
    return score_with_entropy(layer, scores, tokens, with_entropy=False)[0]


def score_with_entropy(
    layer: ModuleType, scores: Logits | LMHead, tokens: Tokens, with_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """``logp`` and ``entropy`` with a graph, [B, T]."""
    if isinstance(scores, LMHead):
        return _score_head(layer, scores, tokens, None, with_entropy)[:2]
    settings = *softmax_of(scores), with_entropy, scores.inplace_gradient
    return layer.token_logp(scores.logits, None, tokens.target_ids, tokens.loss_mask, *settings)[:2]


def _outside_of_graphs(function: F) -> F:
    """How many rows count decides the work: a compiler cannot follow it."""

    @wraps(function)
    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args)
        return function(*args)

    return cast(F, call)


def _score_reference(layer: ModuleType, reference: Scores, tokens: Tokens) -> Tensor:
    with torch.no_grad():
        return score(layer, reference, replace(tokens, gradient=None))


@_outside_of_graphs
def _score_head(
    layer: ModuleType, head: LMHead, tokens: Tokens, reference: LMHead | None = None, with_entropy: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    work = work_of(cast(Epilogue, layer), head, rows_of(tokens, head.rows), tokens, with_entropy)
    return head_logp(work, head.hidden, reference and reference.hidden, head.weight, head.bias)


def loss_of(
    layer: ModuleType,
    policy: Scores,
    reference: Scores,
    tokens: Tokens,
    loss: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Detached ``logp`` and ``ref_logp`` [B, T], and the loss of them with a graph and its metrics.

    Where a head is trained, the loss says what its log-probs' gradient is while their logits are still there.
    """
    if isinstance(policy, LMHead) and needs_of(policy).head:
        return _loss_of_head(layer, policy, reference, tokens, loss)
    logp, ref_logp = score_both(layer, policy, reference, tokens)
    return logp.detach(), ref_logp, loss(logp, ref_logp)


@_outside_of_graphs
def _loss_of_head(
    layer: ModuleType,
    policy: LMHead,
    reference: Scores,
    tokens: Tokens,
    loss: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    rows, ref_hidden, ref_logp = rows_of(tokens, policy.rows), None, None
    work = work_of(cast(Epilogue, layer), policy, rows, tokens)
    if _share_a_head(policy, reference):
        assert isinstance(reference, LMHead)
        ref_hidden = reference.hidden
    else:
        ref_logp = _score_reference(layer, reference, tokens).to(work.accumulation)
    if work.capacity < len(rows.positions):
        work = replace(work, rows=in_blocks(rows, tokens, policy.rows))
    value, logp, ref_logp, *metrics = head_loss(
        work, loss, ref_logp, policy.hidden, ref_hidden, policy.weight, policy.bias
    )
    return logp, ref_logp, (value, *metrics)


def per_token(values: Tensor, target_ids: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """[B, T] (packed [1, N]) from values per sequence; values that are given per token already stay as they are."""
    if values.ndim == 2:
        return values
    if cu_seqlens is None:
        return values[:, None].expand(target_ids.shape)
    positions = torch.arange(target_ids.shape[1], device=values.device)
    return values[torch.searchsorted(cu_seqlens.long()[1:-1], positions, right=True)][None]


def fits_one_launch(layer: ModuleType, policy: Scores, reference: Scores) -> bool:
    if layer is eager or not isinstance(policy, Logits):
        return False
    if not (torch.is_grad_enabled() and policy.logits.requires_grad):
        return False
    if policy.logits.dtype == torch.float16:  # a scaled loss would come too late to save what underflows
        return False
    readable = isinstance(reference, TokenLogp) or _alike(policy, reference)
    return readable and layer.num_programs(policy.logits) > 0


def one_launch_loss(
    layer: ModuleType,
    policy: Scores,
    reference: Scores,
    tokens: Tokens,
    advantages: Tensor,
    num_items: Tensor | None,
    settings: dict[str, float],
) -> tuple[Tensor, ...]:
    """Loss, logp, ref_logp and metrics, and dlogits already."""
    assert isinstance(policy, Logits)
    ref_logp = None
    if isinstance(reference, TokenLogp):
        ref_logp = score(layer, reference, tokens).detach().float()
    temperature, inverse_temperature, softcap, scale = softmax_of(policy)
    return layer.grpo_one_launch(
        policy.logits,
        reference.logits if isinstance(reference, Logits) else None,
        ref_logp,
        tokens.target_ids,
        tokens.loss_mask,
        temperature,
        advantages,
        num_items,
        inverse_temperature=inverse_temperature,
        softcap=softcap,
        scale=scale,
        **settings,
    )
