"""Import of Python objects that a setting names as ``module:name``."""

import importlib
import os
import sys
import traceback
from typing import Any

from humanline_fused.printing import one_line


def import_named(setting: str, path: str, kind: str) -> Any:
    """Import ``module:name``. The current directory is searched last.

    Args:
        setting: name of the setting, for error messages.
        path: the module and the object in it.
        kind: kind of object for error messages: function, class.

    Raises:
        ValueError: the path has another format, or the object cannot be imported; for a module that raises, with the
            last line of it that ran.

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
    except (Exception, SystemExit) as error:
        raise ValueError(f"{setting}: expected {path!r} to be a {kind} that can be imported: {_said(error)}") from error
    return found


def _said(error: BaseException) -> str:
    """Return an error in one line: of an import that failed its text, of other errors also their type and place."""
    text = one_line(error)
    if isinstance(error, ImportError | AttributeError):
        return text
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames[-1].filename != __file__ else ""
    return f"{type(error).__name__}: {text}{where}"
