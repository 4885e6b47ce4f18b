"""Records of plain Python values, whose texts can be encoded."""

from collections.abc import Mapping
from typing import Any

DEPTH = 200
"""Maximum nesting of a record: below the interpreter's limit in whatever reads it later."""


def plain(record: Any) -> Any:
    """Return a record with NumPy's and torch's scalars and arrays as numbers and lists.

    Raises:
        ValueError: a text or a key has half a surrogate pair, which has no encoding, or the nesting is too deep.

    >>> import numpy
    >>> plain({"completions": [" 4", " 5"], "rewards": numpy.array([1.0, 0.0])})
    {'completions': [' 4', ' 5'], 'rewards': [1.0, 0.0]}
    >>> plain({"chosen": [{"content": "No \\ud83d"}]})
    Traceback (most recent call last):
        ...
    ValueError: half a surrogate pair at character 3 of chosen[0].content
    """
    try:
        return record if _is_plain(record, DEPTH) else _plain(record, ())
    except UnicodeEncodeError:
        return _plain(record, ())


def _is_plain(value: Any, depth: int) -> bool:
    """Return True if :func:`_plain` has nothing to do.

    Raises:
        UnicodeEncodeError: a text has half a surrogate pair.
    """
    kind = type(value)
    if kind is str:
        if not value.isascii():
            value.encode()
        return True
    if kind is list:
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    if kind is dict:
        return depth > 0 and all(_is_plain(n, 1) and _is_plain(item, depth - 1) for n, item in value.items())
    return value is None or kind in (bool, int, float)


def _plain(value: Any, place: tuple[str | int, ...]) -> Any:
    if isinstance(value, str):
        _check_text(value, place)
        return str(value)
    if value is None or type(value) in (bool, int, float):
        return value
    if len(place) > DEPTH:
        raise ValueError(f"{place[0]}: expected at most {DEPTH} levels of nesting, got more")
    if isinstance(value, Mapping):
        for name in value:
            if isinstance(name, str) and not name.isascii():
                _check_text(name, (*place, "a key"))
        return {name: _plain(item, (*place, name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item, (*place, index)) for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), place)
    return value


def _check_text(text: str, place: tuple[str | int, ...]) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        named = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
        of = f" of {named}" if named else ""
        raise ValueError(f"half a surrogate pair at character {error.start}{of}") from None
