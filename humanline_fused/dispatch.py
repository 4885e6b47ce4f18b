"""From sources of scores to log-probs: who computes them, and in how many passes. No mathematics."""

from types import ModuleType

import torch
from torch import Tensor

from humanline_fused import eager
from humanline_fused.impl import choose_impl
from humanline_fused.scores import Logits, Scores, TokenLogp
from humanline_fused.types import Impl


def _deciding(*sources: Scores | None) -> list[Tensor]:
    """Logits decide: log-probs beside them follow their precision."""
    logits = [s.logits for s in sources if isinstance(s, Logits)]
    return logits or [s.logp for s in sources if isinstance(s, TokenLogp)]


def computes_in_float64(*sources: Scores | None) -> bool:
    return any(tensor.dtype == torch.float64 for tensor in _deciding(*sources))


def layer_for(impl: Impl, *sources: Scores | None) -> ModuleType:
    """The module that computes."""
    tensors = _deciding(*sources)
    dtype = torch.float64 if computes_in_float64(*sources) else tensors[0].dtype
    choice = choose_impl(impl, tensors[0].device, dtype)
    if choice.impl == "eager":
        return eager
    from humanline_fused import autograd

    return autograd


def softmax_of(scores: Logits) -> tuple[Tensor | None, float, float | None, float]:
    """(temperature, inverse_temperature, softcap, scale): a temperature per token, or its inverse for all."""
    if isinstance(scores.temperature, Tensor):
        return scores.temperature.detach().float(), 1.0, scores.softcap, float(scores.scale)
    return None, 1.0 / scores.temperature, scores.softcap, float(scores.scale)


def _alike(policy: Scores, reference: Scores) -> bool:
    """Whether both sides are logits that one launch can read."""
    if not isinstance(policy, Logits) or not isinstance(reference, Logits):
        return False
    if isinstance(policy.temperature, Tensor) or isinstance(reference.temperature, Tensor):
        if policy.temperature is not reference.temperature:
            return False
    elif policy.temperature != reference.temperature:
        return False
    rest = [(s.logits.dtype, s.softcap, s.scale) for s in (policy, reference)]
    return rest[0] == rest[1]


def score_both(
    layer: ModuleType, policy: Scores, reference: Scores, target_ids: Tensor, loss_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """``logp`` with a graph and ``ref_logp`` without, [B, T], in one dtype; one pass where both sides are alike."""
    if _alike(policy, reference):
        assert isinstance(policy, Logits)
        assert isinstance(reference, Logits)
        logp, _, ref_logp = layer.token_logp(
            policy.logits, reference.logits, target_ids, loss_mask, *softmax_of(policy), False, policy.inplace_gradient
        )
        return logp, ref_logp
    logp = score(layer, policy, target_ids, loss_mask)
    with torch.no_grad():
        ref_logp = score(layer, reference, target_ids, loss_mask)
    if isinstance(policy, Logits):
        return logp, ref_logp.to(logp.dtype)
    if isinstance(reference, Logits):
        return logp.to(ref_logp.dtype), ref_logp
    dtype = torch.promote_types(logp.dtype, ref_logp.dtype)
    return logp.to(dtype), ref_logp.to(dtype)


def score(layer: ModuleType, scores: Scores, target_ids: Tensor, loss_mask: Tensor) -> Tensor:
    match scores:
        case Logits(logits):
            settings = *softmax_of(scores), False, scores.inplace_gradient
            return layer.token_logp(logits, None, target_ids, loss_mask, *settings)[0]
        case TokenLogp(logp):
            return logp.to(torch.promote_types(logp.dtype, torch.float32)).where(loss_mask, 0.0)


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
    target_ids: Tensor,
    loss_mask: Tensor,
    advantages: Tensor,
    num_items: Tensor | None,
    settings: dict[str, float],
) -> tuple[Tensor, ...]:
    """Loss, logp, ref_logp and metrics, and dlogits already."""
    assert isinstance(policy, Logits)
    ref_logp = None
    if isinstance(reference, TokenLogp):
        ref_logp = score(layer, reference, target_ids, loss_mask).detach().float()
    temperature, inverse_temperature, softcap, scale = softmax_of(policy)
    return layer.grpo_one_launch(
        policy.logits,
        reference.logits if isinstance(reference, Logits) else None,
        ref_logp,
        target_ids,
        loss_mask,
        temperature,
        advantages,
        num_items,
        inverse_temperature=inverse_temperature,
        softcap=softcap,
        scale=scale,
        **settings,
    )
