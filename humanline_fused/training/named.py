"""Import of Python objects that a setting names as ``module:name``."""

import importlib
import os
import sys
from typing import Any


def import_named(setting: str, path: str, kind: str) -> Any:
    """Import ``module:name``. The current directory is searched last.

    Args:
        setting: name of the setting, for error messages.
        path: the module and the object in it.
        kind: kind of object for error messages: function, class.

    Raises:
        ValueError: the path has another format, or the object cannot be imported.

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
