"""Checks of scores (Logits, LMHead, TokenLogp), target ids and mask."""

import torch
from torch import Tensor

from humanline_fused.scores import LMHead, Logits, Scores, TokenLogp
from humanline_fused.types import HumanlineClamp
from humanline_fused.validation import values
from humanline_fused.validation.lm_head import check_counted_rows, check_head, check_softmax, check_temperatures
from humanline_fused.validation.values import FLOATS, check_dense, check_ids, check_tensor, describe


def check_scores(name: str, scores: object, target_ids: Tensor) -> None:
    match scores:
        case Logits(logits):
            check_dense(f"{name}: expected Logits of shape [B, T, V]", logits)
            if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[-1] < 1:
                raise ValueError(f"{name}: expected Logits of shape [B, T, V], got {describe(logits)}")
            check_tensor(f"{name} logits", logits, [*target_ids.shape, logits.shape[-1]], FLOATS, target_ids.device)
            check_softmax(name, scores, target_ids)
            if scores.inplace_gradient:
                _check_inplace_gradient(name, logits)
        case LMHead():
            check_softmax(name, scores, target_ids)
            check_head(name, scores, target_ids)
        case TokenLogp(logp):
            check_tensor(f"{name} logp", logp, target_ids.shape, FLOATS, target_ids.device)
        case _:
            raise TypeError(f"{name}: expected Logits(...), LMHead(...) or TokenLogp(...), got {describe(scores)}")


def _check_inplace_gradient(name: str, logits: Tensor) -> None:
    """Check that the logits may be overwritten. Without ``requires_grad``, as in evaluation, nothing is written."""
    expected = f"{name}: inplace_gradient expected the result of another operation"
    if name == "reference":
        raise ValueError(f"{expected} with a gradient, got the reference's logits, which get no gradient")
    if not logits.requires_grad:
        return
    if logits.is_leaf or (logits._base is not None and logits._base.is_leaf):
        raise ValueError(f"{expected}, got a leaf or a view of one: its own values would be overwritten")
    extent = 0
    for stride, size in sorted((st, sz) for st, sz in zip(logits.stride(), logits.shape, strict=True) if sz > 1):
        if stride <= extent:
            raise ValueError(f"{name}: inplace_gradient expected logits that do not overlap, got {logits.stride()}")
        extent += stride * (size - 1)
    if logits.stride(-1) != 1:
        raise ValueError(f"{name}: inplace_gradient expected stride 1 over the vocabulary, got {logits.stride()}")


def check_rows(name: str, scores: Scores, target_ids: Tensor, loss_mask: Tensor) -> None:
    """Check shapes, dtypes and devices of scores, ids and mask; on a CPU also the range of the ids."""
    _check_ids_and_mask(target_ids, loss_mask)
    _check_shapes(name, scores, target_ids, loss_mask)
    _check_vocabulary(scores, target_ids, loss_mask)


def check_tokens(policy: Scores, reference: Scores, target_ids: Tensor, loss_mask: Tensor) -> None:
    """Check policy and reference as :func:`check_rows` does, and that their vocabularies have the same size."""
    _check_ids_and_mask(target_ids, loss_mask)
    _check_shapes("policy", policy, target_ids, loss_mask)
    _check_shapes("reference", reference, target_ids, loss_mask)
    vocabularies = {size for size in map(_vocabulary, (policy, reference)) if size is not None}
    if len(vocabularies) > 1:
        raise ValueError(
            f"policy and reference: expected one vocabulary size, got {(_vocabulary(policy), _vocabulary(reference))}"
        )
    _check_vocabulary(policy, target_ids, loss_mask)
    _check_vocabulary(reference, target_ids, loss_mask)


def _vocabulary(scores: Scores) -> int | None:
    """Return the vocabulary size, or None if this rank does not know it."""
    match scores:
        case Logits(logits):
            return logits.shape[-1]
        case LMHead(_, weight) if scores.group is None:
            return weight.shape[0]
    return None


def _check_ids_and_mask(target_ids: Tensor, loss_mask: Tensor) -> None:
    check_ids("target_ids", target_ids)
    on_cpu = isinstance(loss_mask, Tensor) and loss_mask.device.type == "cpu"
    device = loss_mask.device if on_cpu else target_ids.device
    check_tensor("loss_mask", loss_mask, target_ids.shape, (torch.bool,), device)


def _check_shapes(name: str, scores: Scores, target_ids: Tensor, loss_mask: Tensor) -> None:
    check_scores(name, scores, target_ids)
    if not isinstance(scores, TokenLogp):
        check_temperatures(name, scores, loss_mask)
    if isinstance(scores, LMHead):
        check_counted_rows(name, scores, loss_mask)


def _check_vocabulary(scores: Scores, target_ids: Tensor, loss_mask: Tensor) -> None:
    vocabulary = _vocabulary(scores)
    if vocabulary is not None and values.may_look_at(target_ids):
        _check_ids(target_ids, loss_mask, vocabulary)


def _check_ids(target_ids: Tensor, loss_mask: Tensor, vocabulary: int) -> None:
    illegal = loss_mask & ((target_ids < 0) | (target_ids >= vocabulary))
    if illegal.any():
        b, t = illegal.nonzero()[0].tolist()
        raise ValueError(
            f"target_ids: expected ids in [0, {vocabulary}) where loss_mask is True, "
            f"got {target_ids[b, t].item()} at [{b}, {t}] ({int(illegal.sum())} such)"
        )


def check_clamp(clamp: object) -> None:
    if clamp is not None and not isinstance(clamp, HumanlineClamp):
        raise TypeError(f"clamp: expected HumanlineClamp(...) or None, got {describe(clamp)}")


def check_one_launch(policy: Scores) -> None:
    if not isinstance(policy, Logits):
        raise ValueError(f"one_launch: expected Logits(...) as the policy, got {type(policy).__name__}(...)")
    if policy.inplace_gradient:
        raise ValueError("one_launch: expected logits without inplace_gradient, which would overwrite them in forward")
