"""From sources of scores to log-probs and losses, in as few passes as the sources permit. No mathematics."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from humanline_fused.chunked_head import Call, head_logp, head_loss, in_blocks, needs_of, rows_of, work_of
from humanline_fused.layer import GRPOLoss, Layer, LossOfLogp, OfLogits, OneLaunch, Result, ScoredLoss, TokenLogps
from humanline_fused.scores import LMHead, Logits, Scores, TokenLogp
from humanline_fused.softmax import softmax_of
from humanline_fused.tokens import Tokens, sequence_of

P = ParamSpec("P")
R = TypeVar("R")


def _outside_of_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Not traced by torch.compile: the number of rows that count decides the work."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            untraced: Any = torch.compiler.disable(function)
            return untraced(*args, **kwargs)
        return function(*args, **kwargs)

    return call


# Log-probs


def score(layer: Layer, scores: Scores, tokens: Tokens, with_entropy: bool = False) -> TokenLogps:
    """Log-probs of one source; its entropies too unless it is ``TokenLogp``."""
    match scores:
        case TokenLogp(logp):
            logp = logp.to(torch.promote_types(logp.dtype, torch.float32)).where(tokens.loss_mask, 0.0)
            return TokenLogps(logp, entropy=logp.new_empty(0), ref_logp=logp.new_empty(0))
        case LMHead():
            return _score_head(layer, scores, None, tokens, with_entropy)
        case Logits():
            return _score_logits(layer, scores, None, tokens, with_entropy)


def score_both(layer: Layer, policy: Scores, reference: Scores, tokens: Tokens) -> TokenLogps:
    """Log-probs of policy and reference in one dtype; one pass if one launch or one product can take both."""
    if isinstance(policy, Logits) and isinstance(reference, Logits) and _read_alike(policy, reference):
        return _score_logits(layer, policy, reference, tokens)
    if isinstance(policy, LMHead) and isinstance(reference, LMHead) and _share_a_head(policy, reference):
        return _score_head(layer, policy, reference, tokens)
    ref_logp = _score_reference(layer, reference, tokens)
    scores = score(layer, policy, tokens)
    dtype = _common_dtype(policy, reference, scores.logp.dtype, ref_logp.dtype)
    return scores._replace(logp=scores.logp.to(dtype), ref_logp=ref_logp.to(dtype))


def _score_logits(
    layer: Layer, logits: Logits, reference: Logits | None, tokens: Tokens, with_entropy: bool = False
) -> TokenLogps:
    return layer.token_logp(
        logits.logits,
        None if reference is None else reference.logits,
        tokens.target_ids,
        tokens.loss_mask,
        softmax_of(logits),
        with_entropy,
        logits.inplace_gradient,
    )


@_outside_of_graphs
def _score_head(
    layer: Layer, head: LMHead, reference: LMHead | None, tokens: Tokens, with_entropy: bool = False
) -> TokenLogps:
    work = work_of(layer, head, rows_of(tokens, head.rows), tokens, with_entropy)
    return head_logp(work, head.hidden, None if reference is None else reference.hidden, head.weight, head.bias)


def _score_reference(layer: Layer, reference: Scores, tokens: Tokens) -> Tensor:
    if isinstance(reference, LMHead):  # the only source that orders its rows by their gradient
        tokens = replace(tokens, gradient=None)
    with torch.no_grad():
        return score(layer, reference, tokens).logp


def _same_softmax(policy: Logits | LMHead, reference: Logits | LMHead) -> bool:
    if isinstance(policy.temperature, Tensor) or isinstance(reference.temperature, Tensor):
        if policy.temperature is not reference.temperature:
            return False
    elif policy.temperature != reference.temperature:
        return False
    return (policy.softcap, policy.scale) == (reference.softcap, reference.scale)


def _read_alike(policy: Logits, reference: Logits) -> bool:
    """Return True if one launch can read the logits of both."""
    return policy.logits.dtype == reference.logits.dtype and _same_softmax(policy, reference)


def _share_a_head(policy: LMHead, reference: LMHead) -> bool:
    """Return True if one product can take the hidden states of both."""
    if policy.hidden.dtype != reference.hidden.dtype:
        return False
    same = policy.weight is reference.weight and policy.bias is reference.bias and policy.group is reference.group
    return same and policy.fp32_logits == reference.fp32_logits and _same_softmax(policy, reference)


def _common_dtype(policy: Scores, reference: Scores, logp: torch.dtype, ref_logp: torch.dtype) -> torch.dtype:
    """The dtype of log-probs that a model gives, before that of log-probs that the caller gives."""
    if not isinstance(policy, TokenLogp):
        return logp
    return torch.promote_types(logp, ref_logp) if isinstance(reference, TokenLogp) else ref_logp


# Losses


def loss_of(
    layer: Layer, policy: Scores, reference: Scores, tokens: Tokens, loss_of_logp: LossOfLogp[Result]
) -> ScoredLoss[Result]:
    """Scores policy and reference and applies ``loss_of_logp`` to their log-probs.

    With a trained head the loss gives the gradient of a chunk's log-probs while the chunk's logits are still there.
    """
    if isinstance(policy, LMHead) and needs_of(policy).head:
        return _loss_of_head(layer, policy, reference, tokens, loss_of_logp)
    if isinstance(layer, OfLogits) and isinstance(policy, Logits) and _is_differentiated_as_a_whole(policy):
        return _loss_of_logits(layer, policy, reference, tokens, loss_of_logp)
    scores = score_both(layer, policy, reference, tokens)
    result = loss_of_logp(scores.logp, scores.ref_logp)
    return ScoredLoss(result, scores.logp.detach(), scores.ref_logp)


def _is_differentiated_as_a_whole(policy: Logits) -> bool:
    """Not in a compiled graph, where the compiler finds the parts that belong together."""
    return torch.is_grad_enabled() and policy.logits.requires_grad and not torch.compiler.is_compiling()


def _loss_of_logits(
    layer: Any, policy: Logits, reference: Scores, tokens: Tokens, loss_of_logp: LossOfLogp[Result]
) -> ScoredLoss[Result]:
    ref_logits = ref_logp = None
    if isinstance(reference, Logits) and _read_alike(policy, reference):
        ref_logits = reference.logits
    else:
        ref_logp = _score_reference(layer, reference, tokens).float().contiguous()
    ids, mask, inplace = tokens.target_ids, tokens.loss_mask, policy.inplace_gradient
    return layer.logits_loss(policy.logits, loss_of_logp, ref_logits, ref_logp, ids, mask, softmax_of(policy), inplace)


@_outside_of_graphs
def _loss_of_head(
    layer: Layer, policy: LMHead, reference: Scores, tokens: Tokens, loss_of_logp: LossOfLogp[Result]
) -> ScoredLoss[Result]:
    rows, ref_hidden, ref_logp = rows_of(tokens, policy.rows), None, None
    work = work_of(layer, policy, rows, tokens)
    if isinstance(reference, LMHead) and _share_a_head(policy, reference):
        ref_hidden = reference.hidden
    else:
        ref_logp = _score_reference(layer, reference, tokens).to(work.accumulation)
    if work.capacity < len(rows.positions):
        work = replace(work, rows=in_blocks(rows, tokens, policy.rows))
    differentiated = partial(layer.loss_and_derivative, loss_of_logp)
    return head_loss(Call(work, differentiated, ref_logp, ref_hidden), policy.hidden, policy.weight, policy.bias)


def per_token(values: Tensor, target_ids: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """[B, T] (packed: [1, N]) from values per sequence; values per token stay as they are."""
    if values.ndim == 2:
        return values
    if cu_seqlens is None:
        return values[:, None].expand(target_ids.shape)
    positions = torch.arange(target_ids.shape[1], device=values.device)
    return values[sequence_of(positions, cu_seqlens)][None]


def grpo_in_one_launch(
    layer: Layer,
    policy: Scores,
    reference: Scores,
    tokens: Tokens,
    advantages: Tensor,
    num_items_in_batch: Tensor | None,
    **settings: float,
) -> ScoredLoss[GRPOLoss] | None:
    """GRPO's loss with dlogits already computed; None where one launch cannot do it, or two are faster."""
    if not isinstance(layer, OneLaunch) or not isinstance(policy, Logits):
        return None
    if not (torch.is_grad_enabled() and policy.logits.requires_grad):
        return None
    if policy.logits.dtype == torch.float16:  # a scaled loss would come too late to save gradients that underflow
        return None
    ref_logits = ref_logp = None
    match reference:
        case TokenLogp():
            ref_logp = score(layer, reference, tokens).logp.detach().float()
        case Logits() if _read_alike(policy, reference):
            ref_logits = reference.logits
        case _:
            return None
    if layer.num_programs(policy.logits) == 0:
        return None
    return layer.grpo_one_launch(
        policy.logits,
        ref_logits,
        ref_logp,
        tokens.target_ids,
        tokens.loss_mask,
        softmax_of(policy),
        advantages,
        num_items_in_batch,
        **settings,
    )
