"""Types of settings, which a dataclass does not check."""

import dataclasses
import inspect
import os
from collections.abc import Iterable
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from humanline_fused.validation.values import is_beyond_float32, shown


def own_settings(kind: type, package: str) -> list[str]:
    """Return the settings that the classes of a package define or redefine, in the order of their names."""
    bases = [base for base in kind.__mro__ if base.__module__.split(".")[0] == package]
    return sorted({field.name for base in bases for field in dataclasses.fields(base) if _defines(base, field.name)})


def check_types(settings: Any, names: Iterable[str]) -> None:
    """Check that each setting has the type of its annotation.

    An integer is a float too, and a path is a text where no list is meant; True is neither. Integers and words of a
    ``Literal`` are left to checks of their values.

    Raises:
        TypeError, ValueError: a setting has another type, or is a number that float32 does not hold.
    """
    hints = get_type_hints(type(settings))
    for name in names:
        value, kinds = getattr(settings, name), _kinds(hints[name])
        if not kinds or int in kinds:
            continue
        if not any(_is(value, kind) for kind in kinds):
            expected = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
            raise TypeError(f"{name}: expected {expected}, got {type(value).__name__} {value!r:.80}")
        items = value if isinstance(value, list) else [value] if list in kinds and value is not None else []
        if others := [item for item in items if not isinstance(item, str)]:
            raise TypeError(f"{name}: expected texts, got {type(others[0]).__name__} {others[0]!r:.80}")
        if isinstance(value, int | float) and is_beyond_float32(value):
            raise ValueError(f"{name}: expected a number, got {shown(value)}, which float32 does not hold")


def _defines(kind: type, name: str) -> bool:
    return name in inspect.get_annotations(kind)


def _kinds(hint: Any) -> list[type]:
    """Return the types that an annotation names; none for a ``Literal``."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    return [] if origin is Literal else [origin or hint]


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    return isinstance(value, str | os.PathLike) if kind is str else isinstance(value, kind)
