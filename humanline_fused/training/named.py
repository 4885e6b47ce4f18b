"""Python objects named in a setting, as ``module:name``."""

import importlib
import os
import sys
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
