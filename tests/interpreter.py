"""Triton's interpreter with the rounding of the hardware: once in ``tl.fma``, to nearest even in fp32 -> bf16.

Without this change it rounds the fma twice and truncates to bf16, and the kernels' error budget would measure that. It
also patches the language again in every call of a device function, which takes longer than the function itself.
"""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton import knobs
from triton.runtime import interpreter

convert_float = interpreter._convert_float
patch_language = interpreter._patch_lang


def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    exact = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
    return interpreter.TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)


def convert_to_nearest(values: Any, source: tl.dtype, target: tl.dtype, rounding_mode: Any) -> Any:
    if (source, target) != (tl.float32, tl.bfloat16):
        return convert_float(values, source, target, rounding_mode)
    rounded = torch.from_numpy(values.view(np.float32).copy()).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16)


patched_for: set[frozenset[str]] = set()
modules_of: dict[Any, frozenset[str]] = {}
scopes: list[Any] = []


def restore_all() -> None:
    patched_for.clear()
    while scopes:
        type(scopes[-1]).restore(scopes.pop())


def patch_once_a_launch(fn: Any) -> Any:
    """Keep a launch's patches until it ends, for all functions that use the same modules of Triton."""
    if fn not in modules_of:
        seen = fn.__globals__.values()
        modules_of[fn] = frozenset(value.__name__ for value in seen if value is tl or value is tl.core)
    modules = modules_of[fn]
    if modules in patched_for:
        return None  # Triton does not use the scope of a device function
    patched_for.add(modules)
    scopes.append(patch_language(fn))
    scopes[-1].restore = restore_all
    return scopes[-1]


def round_as_hardware_does() -> None:
    """Change the interpreter, if kernels are interpreted: compiled ones need the language as it is."""
    if not knobs.runtime.interpret:
        return
    if hasattr(interpreter, "_LangPatchScope"):
        interpreter._patch_lang = patch_once_a_launch
    interpreter.InterpreterBuilder.create_fma = create_fma
    interpreter._convert_float = convert_to_nearest
    # Infinities and NaN are valid results, as on a GPU, so numpy must not warn.
    np.seterr(invalid="ignore", over="ignore", divide="ignore")
