"""Checks of tensors, ids and numbers."""

import difflib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
FLOAT32 = torch.finfo(torch.float32)


def describe(value: object) -> str:
    if isinstance(value, Tensor):
        dtype, layout = (str(what).removeprefix("torch.") for what in (value.dtype, value.layout))
        if value.is_nested:
            return f"a nested tensor, {dtype}"
        return f"{'' if layout == 'strided' else layout + ' '}{dtype} {list(value.shape)} on {value.device}"
    return f"{type(value).__name__} {shown(value)}"


def shown(value: object) -> str:
    """``repr`` in at most 83 characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4300 digits
        return "a number of too many digits"
    return text if len(text) <= 80 else text[:80] + "..."


def _is_dense(value: Tensor) -> bool:
    """Return True for a tensor that has its values in memory."""
    strided = value.layout == torch.strided and not value.is_nested
    return strided and value.device.type != "meta" and not hasattr(value, "placements")


def check_dense(expected: str, value: object) -> None:
    """Check that a tensor has its values in memory: refuse DTensors, nested and sparse tensors, and meta tensors."""
    if hasattr(value, "placements"):
        raise TypeError(f"{expected}, got a DTensor: pass local tensors, inside the wrapped model's forward")
    if not isinstance(value, Tensor) or _is_dense(value):
        return
    reason = "a meta tensor has no values" if value.device.type == "meta" else "pass a dense tensor"
    raise TypeError(f"{expected}, got {describe(value)}: {reason}")


def check_tensor(
    name: str, value: object, shape: Sequence[int], kinds: Sequence[torch.dtype], device: torch.device
) -> None:
    if isinstance(value, Tensor) and _is_dense(value):
        found = value.dtype in kinds, value.shape == torch.Size(shape), value.device == device
        if all(found):
            return
    expected = f"{name}: expected {' or '.join(str(k).removeprefix('torch.') for k in kinds)} {list(shape)} on {device}"
    check_dense(expected, value)
    if not isinstance(value, Tensor) or value.dtype not in kinds:
        raise TypeError(f"{expected}, got {describe(value)}")
    raise ValueError(f"{expected}, got {describe(value)}")


def check_ids(name: str, ids: object) -> None:
    expected = f"{name}: expected int64 or int32 [B, T]"
    check_dense(expected, ids)
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{expected}, got {describe(ids)}")


def check_values(name: str, expected: str, values: Tensor, legal: Tensor) -> None:
    """Check that all values are legal, where that can be read without a wait: elsewhere they make the result NaN."""
    if may_look_at(values) and may_look_at(legal) and not legal.all():
        raise ValueError(f"{name}: expected {expected}, got {values[~legal].flatten()[0].item()}")


def is_beyond_float32(value: float) -> bool:
    """Return True for a finite number that float32, in which losses are computed, holds as infinity, or as 0."""
    return FLOAT32.max < abs(value) < math.inf or 0 < abs(value) < FLOAT32.tiny


def _is_held(value: object) -> bool:
    """Return True for a finite int or float that float32 holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < math.inf and not is_beyond_float32(value)


def check_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """Return ``value`` if ``low ≤ value ≤ high`` and finite; as a float, because an integer recompiles kernels."""
    if not isinstance(value, int | float) or not _is_held(value) or not low <= value <= high:
        raise ValueError(f"{name}: expected a finite number in [{low}, {high}], got {_not_held(value)}")
    return float(value)


def check_positive(name: str, value: object) -> float:
    """Return ``value``, a finite number > 0, as a float."""
    if not isinstance(value, int | float) or not _is_held(value) or not value > 0:
        raise ValueError(f"{name}: expected a finite number > 0, got {_not_held(value)}")
    return float(value)


def _not_held(value: object) -> str:
    """Return a refused number as text, with the reason where it is only too large or too small."""
    if isinstance(value, int | float) and is_beyond_float32(value):
        return f"{shown(value)}, which float32 does not hold"
    return shown(value)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name}: expected one of {listed}, got {shown(value)}{nearest(value, choices)}")


def nearest(name: object, names: Iterable[str], alike: float = 0.5) -> str:
    """``; did you mean …?`` with the name that is spelt most like it, by a share of at least ``alike``, or nothing.

    >>> nearest("Gpro", ["dpo", "grpo"])
    '; did you mean grpo?'
    """
    by_spelling = {known.lower(): known for known in names}
    close = difflib.get_close_matches(str(name).lower(), by_spelling, n=1, cutoff=alike)
    return f"; did you mean {by_spelling[close[0]]}?" if close else ""


def may_look_at(tensor: Tensor) -> bool:
    """Return whether the values can be read without waiting for a device or breaking a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
