"""Names in settings: Python objects as ``module:name``, and the nearest of the names that are known."""

import difflib
import importlib
import os
import sys
from collections.abc import Iterable
from typing import Any


def import_named(setting: str, path: str, kind: str) -> Any:
    """Import ``module:name``. The current directory is searched last.

    Args:
        setting: its name, with which an error begins.
        path: the module and the object in it.
        kind: of object that is expected: function, class.

    Raises:
        ValueError: the path has another form, or there is no such object.

    >>> import_named("reward", "math:sqrt", "function")(4.0)
    2.0
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(f"{setting}: expected module:{kind}, got {path!r}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{setting}: expected {path!r} to be a {kind} that can be imported: {error}") from error
    return found


def nearest(name: object, names: Iterable[str]) -> str:
    """``; did you mean …?`` with the name that is spelt most like it, or nothing.

    >>> nearest("Gpro", ["dpo", "grpo"])
    '; did you mean grpo?'
    """
    by_spelling = {known.lower(): known for known in names}
    close = difflib.get_close_matches(str(name).lower(), by_spelling, n=1, cutoff=0.5)
    return f"; did you mean {by_spelling[close[0]]}?" if close else ""
