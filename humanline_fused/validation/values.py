"""Checks of tensors, ids and numbers."""

import difflib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:80] + '...'}"


def check_tensor(
    name: str, value: object, shape: Sequence[int], kinds: Sequence[torch.dtype], device: torch.device
) -> None:
    expected = f"{name}: expected {' or '.join(str(k).removeprefix('torch.') for k in kinds)} {list(shape)} on {device}"
    if hasattr(value, "placements"):
        raise TypeError(f"{expected}, got a DTensor: pass local tensors, inside the wrapped model's forward")
    if not isinstance(value, Tensor) or value.dtype not in kinds:
        raise TypeError(f"{expected}, got {describe(value)}")
    if list(value.shape) != list(shape) or value.device != device:
        raise ValueError(f"{expected}, got {describe(value)}")


def check_ids(name: str, ids: object) -> None:
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected int64 or int32 [B, T], got {describe(ids)}")


def check_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """Return ``value`` if ``low ≤ value ≤ high`` and finite; as a float, because an integer recompiles kernels."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or math.isinf(value):
        raise ValueError(f"{name}: expected a finite number in [{low}, {high}], got {value!r}")
    return float(value)


def check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name}: expected one of {listed}, got {value!r}{nearest(value, choices)}")


def nearest(name: object, names: Iterable[str]) -> str:
    """``; did you mean …?`` with the name that is spelt most like it, or nothing.

    >>> nearest("Gpro", ["dpo", "grpo"])
    '; did you mean grpo?'
    """
    by_spelling = {known.lower(): known for known in names}
    close = difflib.get_close_matches(str(name).lower(), by_spelling, n=1, cutoff=0.5)
    return f"; did you mean {by_spelling[close[0]]}?" if close else ""


def may_look_at(tensor: Tensor) -> bool:
    """Return whether the values can be read without waiting for a device or breaking a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
