"""Checks of what a caller hands in. Every error says what was expected and what came.

Nothing here waits for a GPU: what only the device knows (ids out of range) is an error on a CPU and a NaN row there.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from humanline_fused.scores import Logits, Scores, TokenLogp
from humanline_fused.types import HumanlineClamp


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:80] + '...'}"


def check_tensor(
    name: str, value: object, shape: Sequence[int], kinds: Sequence[torch.dtype], device: torch.device
) -> None:
    expected = f"{name}: expected {' or '.join(str(k).removeprefix('torch.') for k in kinds)} {list(shape)} on {device}"
    if hasattr(value, "placements"):
        raise TypeError(
            f"{expected}, got a DTensor: a loss takes what a rank holds, inside the wrapped model's forward"
        )
    if not isinstance(value, Tensor) or value.dtype not in kinds:
        raise TypeError(f"{expected}, got {_describe(value)}")
    if list(value.shape) != list(shape) or value.device != device:
        raise ValueError(f"{expected}, got {_describe(value)}")


FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def check_scores(name: str, scores: object, target_ids: Tensor) -> None:
    match scores:
        case Logits(logits):
            if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[-1] < 1:
                raise ValueError(f"{name}: expected Logits of shape [B, T, V], got {_describe(logits)}")
            check_tensor(f"{name} logits", logits, [*target_ids.shape, logits.shape[-1]], FLOATS, target_ids.device)
            check_softmax(name, scores, target_ids)
        case TokenLogp(logp):
            check_tensor(f"{name} logp", logp, target_ids.shape, FLOATS, target_ids.device)
        case _:
            raise TypeError(f"{name}: expected Logits(...) or TokenLogp(...), got {_describe(scores)}")


def check_softmax(name: str, scores: Logits, target_ids: Tensor) -> None:
    """Temperature, softcap and scale are positive; the logits may be overwritten if that was asked for."""
    if isinstance(scores.temperature, Tensor):
        check_tensor(f"{name} temperature", scores.temperature, target_ids.shape, FLOATS, target_ids.device)
    else:
        check_positive(f"{name} temperature", scores.temperature)
    if scores.softcap is not None:
        check_positive(f"{name} softcap", scores.softcap)
    check_positive(f"{name} scale", scores.scale)
    if scores.inplace_gradient:
        _check_inplace_gradient(name, scores.logits)


def _check_inplace_gradient(name: str, logits: Tensor) -> None:
    """The logits may be written over. Where no gradient is asked for, in evaluation say, none will be."""
    expected = f"{name}: inplace_gradient expected the result of another operation"
    if name == "reference":
        raise ValueError(f"{expected} with a gradient, got logits that no gradient reaches")
    if not logits.requires_grad:
        return
    if logits.is_leaf or (logits._base is not None and logits._base.is_leaf):
        raise ValueError(f"{expected}, got a leaf or a view of one: its own values would be overwritten")
    extent = 0
    for stride, size in sorted((st, sz) for st, sz in zip(logits.stride(), logits.shape, strict=True) if sz > 1):
        if stride <= extent:
            raise ValueError(f"{name}: inplace_gradient expected no two logits in one place, got {logits.stride()}")
        extent += stride * (size - 1)
    if logits.stride(-1) != 1:
        raise ValueError(f"{name}: inplace_gradient expected stride 1 over the vocabulary, got {logits.stride()}")


def check_ids(name: str, ids: object) -> None:
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected int64 or int32 [B, T], got {_describe(ids)}")


def check_rows(name: str, scores: Scores, target_ids: Tensor, loss_mask: Tensor) -> None:
    """Shapes, dtypes and devices of a source of scores and its tokens; on a CPU also that the ids are legal."""
    _check_shapes(name, scores, target_ids, loss_mask)
    _check_vocabulary(scores, target_ids, loss_mask)


def check_tokens(policy: Scores, reference: Scores, target_ids: Tensor, loss_mask: Tensor) -> None:
    """The same of policy and reference, and that they fit each other."""
    _check_shapes("policy", policy, target_ids, loss_mask)
    _check_shapes("reference", reference, target_ids, loss_mask)
    if isinstance(policy, Logits) and isinstance(reference, Logits):
        vocabularies = policy.logits.shape[-1], reference.logits.shape[-1]
        if vocabularies[0] != vocabularies[1]:
            raise ValueError(f"policy and reference: expected one vocabulary size, got {vocabularies}")
    _check_vocabulary(policy, target_ids, loss_mask)
    _check_vocabulary(reference, target_ids, loss_mask)


def _check_shapes(name: str, scores: Scores, target_ids: Tensor, loss_mask: Tensor) -> None:
    check_ids("target_ids", target_ids)
    check_tensor("loss_mask", loss_mask, target_ids.shape, (torch.bool,), target_ids.device)
    check_scores(name, scores, target_ids)


def _check_vocabulary(scores: Scores, target_ids: Tensor, loss_mask: Tensor) -> None:
    if isinstance(scores, Logits) and _may_look_at(target_ids):
        _check_ids(target_ids, loss_mask, scores.logits.shape[-1])


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
        raise TypeError(f"clamp: expected HumanlineClamp(...) or None, got {_describe(clamp)}")


def check_one_launch(policy: Scores) -> None:
    if not isinstance(policy, Logits):
        raise ValueError(f"one_launch: expected Logits(...) as the policy, got {type(policy).__name__}(...)")
    if policy.inplace_gradient:
        raise ValueError("one_launch: expected logits without inplace_gradient, which would overwrite them in forward")


def check_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """``low ≤ value ≤ high``, finite; as a float, because a kernel is compiled anew for an integer."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or math.isinf(value):
        raise ValueError(f"{name}: expected a finite number in [{low}, {high}], got {value!r}")
    return float(value)


def check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")


def check_sequences(target_ids: Tensor, cu_seqlens: Tensor | None) -> int:
    """The number of sequences: rows of padded input, or what ``cu_seqlens`` bounds in one row of packed input."""
    if cu_seqlens is None:
        return target_ids.shape[0]
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens: expected int32 or int64 [B + 1], got {_describe(cu_seqlens)}")
    if cu_seqlens.shape[0] < 1 or cu_seqlens.device != target_ids.device:
        raise ValueError(f"cu_seqlens: expected [B + 1] on {target_ids.device}, got {_describe(cu_seqlens)}")
    if target_ids.shape[0] != 1:
        raise ValueError(f"cu_seqlens: expected ids in one row [1, N] beside it, got {list(target_ids.shape)}")
    if _may_look_at(cu_seqlens):
        ends = cu_seqlens.tolist()
        if ends[0] != 0 or ends[-1] != target_ids.shape[1] or sorted(ends) != ends:
            raise ValueError(f"cu_seqlens: expected 0 to {target_ids.shape[1]}, not falling, got {ends}")
    return cu_seqlens.shape[0] - 1


def _may_look_at(tensor: Tensor) -> bool:
    """Whether its values can be read without waiting for a device, or breaking a graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_pairs(num_sequences: int) -> None:
    if num_sequences % 2:
        raise ValueError(
            "expected an even number of sequences, the first half chosen and the second half rejected, "
            f"got {num_sequences}"
        )
