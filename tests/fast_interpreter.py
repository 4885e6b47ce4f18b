"""Caches for Triton's interpreter, which repeats much work in every operation; the results keep their bits.

The tests' tensors are tiny, so most of the time is Python overhead: types are built again, a table of all dtypes is
hashed, and a check for overflow is computed in full and dropped because ``debug`` is off.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

core: Any = tl.core
semantic: Any = type(interpreter.interpreter_semantic)
INTEGERS = frozenset(tl.dtype.SINT_TYPES + tl.dtype.UINT_TYPES)

np_dtypes: dict[str, np.dtype[Any]] = {}
shapes: dict[tuple[int, ...], tuple[Any, Any]] = {(): (tl.constexpr(1), core.tuple([]))}
builtins_of: dict[Any, list[tuple[str, Callable[..., Any]]]] = {}

np_dtype_of, equal_dtypes, unwrap = interpreter._get_np_dtype, core.dtype.__eq__, core._unwrap_if_constexpr
check_overflow = semantic.binary_op_sanitize_overflow_impl


def remembered_np_dtype(dtype: Any) -> np.dtype[Any]:
    if dtype.name not in np_dtypes:
        np_dtypes[dtype.name] = np_dtype_of(dtype)
    return np_dtypes[dtype.name]


def check_overflow_where_it_is_told(self: Any, *operation: Any) -> None:
    if self.builder.options.debug:
        check_overflow(self, *operation)


def make_tensor(self: Any, handle: Any, type: Any) -> None:
    """Initialise a tensor with one cached object per shape."""
    sizes = tuple(type.shape.values) if type.is_block() else ()
    if sizes not in shapes:
        shapes[sizes] = tl.constexpr(type.numel), core.tuple([tl.constexpr(size) for size in sizes])
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = shapes[sizes]


def with_element_ty(self: Any, element_ty: Any) -> Any:
    """Cache the type of a block by its element's name; the name of a pointer does not identify it."""
    if type(element_ty) is not tl.dtype:
        return tl.block_type(element_ty, self.shape)
    others = vars(self).setdefault("others", {})
    if element_ty.name not in others:
        others[element_ty.name] = tl.block_type(element_ty, self.shape)
    return others[element_ty.name]


def patch_builtins(package: Any, builder: Any, scope: Any) -> None:
    if package not in builtins_of:
        members = [(name, member) for name, member in inspect.getmembers(package) if core.is_builtin(member)]
        builtins_of[package] = [(name, interpreted(member)) for name, member in members]
    for name, member in builtins_of[package]:
        scope.set_attr(package, name, member)


def interpreted(member: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = interpreter.interpreter_semantic
        return member(*args, **kwargs)

    return call


def remember() -> None:
    interpreter._get_np_dtype = remembered_np_dtype
    interpreter._patch_builtin = patch_builtins
    semantic.binary_op_sanitize_overflow_impl = check_overflow_where_it_is_told
    core._unwrap_if_constexpr = lambda value: value if type(value) is int else unwrap(value)
    core.tensor.__init__ = make_tensor
    core.block_type.with_element_ty = with_element_ty
    core.block_type.to_ir = lambda self, builder: self  # the original builds an equal type again
    core.dtype.__eq__ = lambda self, other: self is other or equal_dtypes(self, other)
    core.dtype.is_int = lambda self: self.name in INTEGERS
