"""Checks of an LMHead and of the softmax settings."""

import torch
import torch.distributed
from torch import Tensor

from humanline_fused.scores import LMHead, Logits
from humanline_fused.validation import values
from humanline_fused.validation.values import FLOATS, check_dense, check_positive, check_tensor, check_values, describe


def check_softmax(name: str, scores: Logits | LMHead, target_ids: Tensor) -> None:
    """Check that temperature, softcap and scale are positive."""
    if isinstance(scores.temperature, Tensor):
        check_tensor(f"{name} temperature", scores.temperature, target_ids.shape, FLOATS, target_ids.device)
    else:
        check_positive(f"{name} temperature", scores.temperature)
    if scores.softcap is not None:
        check_positive(f"{name} softcap", scores.softcap)
    check_positive(f"{name} scale", scores.scale)


def check_temperatures(name: str, scores: Logits | LMHead, loss_mask: Tensor) -> None:
    """Check that the temperatures of tokens that count are positive; where a check would wait, they give NaN."""
    temperature = scores.temperature
    if isinstance(temperature, Tensor) and values.may_look_at(temperature) and values.may_look_at(loss_mask):
        counted = temperature.detach()[loss_mask]
        check_values(f"{name} temperature", "finite numbers > 0", counted, (counted > 0) & counted.isfinite())


def check_head(name: str, head: LMHead, target_ids: Tensor) -> None:
    """Check shapes and dtypes, and that this rank has the whole weight."""
    device = target_ids.device
    hidden, weight = head.hidden, head.weight
    check_dense(f"{name}: expected LMHead with hidden of shape [B, T, H]", hidden)
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        raise ValueError(f"{name}: expected LMHead with hidden of shape [B, T, H], got {describe(hidden)}")
    check_tensor(f"{name} hidden", hidden, [*target_ids.shape, hidden.shape[-1]], FLOATS, device)
    _check_whole(name, weight)
    check_dense(f"{name}: expected LMHead with weight of shape [V, H]", weight)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[0] < 1:
        raise ValueError(f"{name}: expected LMHead with weight of shape [V, H], got {describe(weight)}")
    kinds = (hidden.dtype,) if not torch.is_autocast_enabled(device.type) else FLOATS
    check_tensor(f"{name} weight", weight, [weight.shape[0], hidden.shape[-1]], kinds, device)
    if head.bias is not None:
        _check_whole(name, head.bias)
        check_tensor(f"{name} bias", head.bias, [weight.shape[0]], kinds, device)
    if head.workspace_bytes is not None and (
        isinstance(head.workspace_bytes, bool) or not isinstance(head.workspace_bytes, int) or head.workspace_bytes < 1
    ):
        raise ValueError(f"{name} workspace_bytes: expected a number of bytes > 0, got {head.workspace_bytes!r}")
    if head.group is not None and not isinstance(head.group, torch.distributed.ProcessGroup):
        raise TypeError(f"{name} group: expected a ProcessGroup or None, got {describe(head.group)}")
    if head.main_grad:
        _check_main_grad(name, weight)


def _check_whole(name: str, weight: Tensor) -> None:
    if hasattr(weight, "placements"):
        raise TypeError(
            f"{name}: expected a weight that this rank holds whole, got a DTensor. Compute the loss inside the wrapped "
            "model's forward, with the head in FSDP's root unit, or in a unit that is not resharded after forward "
            "(full_tensor() would lose the reduction of its gradient); for a vocabulary sharded over a group use "
            "LMHead(..., weight.to_local(), group=...)"
        )
    if hasattr(weight, "ds_id") and weight.numel() == 0:
        raise ValueError(
            f"{name}: expected a weight that this rank holds whole, got one partitioned by ZeRO-3. Compute the "
            "loss inside the wrapped model's forward, under deepspeed.zero.GatheredParameters"
        )


def _check_main_grad(name: str, weight: Tensor) -> None:
    main_grad = getattr(weight, "main_grad", None)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    check_tensor(f"{name} weight.main_grad", main_grad, weight.shape, (dtype,), weight.device)


def check_counted_rows(name: str, head: LMHead, loss_mask: Tensor) -> None:
    """Check that the given rows are exactly those where ``loss_mask`` is True."""
    rows = head.rows
    if rows is None:
        return
    check_dense(f"{name} rows: expected int64 [n]", rows)
    if not isinstance(rows, Tensor) or rows.ndim != 1 or rows.dtype != torch.int64:
        raise TypeError(f"{name} rows: expected int64 [n], got {describe(rows)}")
    if not (values.may_look_at(rows) and values.may_look_at(loss_mask)):
        return
    counted = loss_mask.flatten().nonzero()[:, 0]
    if not torch.equal(rows, counted):
        raise ValueError(
            f"{name} rows: expected the {len(counted)} positions b · T + t where loss_mask is True, ascending, got "
            f"{describe(rows)}, {'as many' if len(rows) == len(counted) else 'another number'}"
        )
