"""Printing that neither fails nor steers a terminal: escapes, errors of one line, and output streams without errors."""

import argparse
import io
import os
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, NoReturn, TextIO

CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing
    "\u2028\u2029\ufeff"  # line and paragraph separator, byte-order mark
    "\ud800-\udfff]"  # halves of surrogate pairs
)


def escaped(text: str) -> str:
    """Return the text with Python's escapes for control characters, except tabs and newlines.

    >>> print(escaped("red \\x1b[31m, mirrored \\u202e"))
    red \\x1b[31m, mirrored \\u202e
    """
    return CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def one_line(said: object) -> str:
    """Return a text, or the text of an error, with its lines joined into one.

    >>> one_line(ValueError("no server\\n   at port 80"))
    'no server at port 80'
    """
    return re.sub(r"\s*\n\s*", " ", str(said).strip())


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, which gets an s unless the number is 1.

    >>> counted(1, "prompt"), counted(2, "prompt")
    ('1 prompt', '2 prompts')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


def wrapped(lines: Iterable[str], width: int | None = None) -> str:
    """Return the lines, escaped; those longer than a terminal's ``width`` continue in the next one, indented.

    Args:
        lines: the lines.
        width: in characters; default the terminal's, and no limit if stdout is none.

    >>> print(wrapped(["one two three", "four"], width=9))
    one two
      three
    four
    """
    if width is None and sys.stdout is not None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    whole = [escaped(line) for line in lines]
    if width is None:
        return "\n".join(whole)
    how: dict[str, Any] = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.fill(line, width, **how) for line in whole)


def styled(text: str, style: str) -> str:
    """Return the text with the style's escapes, if stdout is a terminal and `rich` is installed; else as it is.

    >>> styled("loss", "bold")
    'loss'
    """
    if not style or sys.stdout is None or not sys.stdout.isatty() or find_spec("rich") is None:
        return text
    from rich.console import Console
    from rich.text import Text

    console = Console(width=max(80, len(text)), highlight=False)
    with console.capture() as captured:
        console.print(Text(text, style=style), end="")
    return captured.get()


class Parser(argparse.ArgumentParser):
    """Parser whose error is one line, also if an argument has several.

    >>> parser = Parser(prog="humanline", usage="humanline")
    >>> from contextlib import redirect_stderr
    >>> with suppress(SystemExit), redirect_stderr(sys.stdout):
    ...     _ = parser.parse_args(["two\\nlines"])
    usage: humanline
    humanline: error: unrecognized arguments: two lines
    """

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print this package's warnings as one line each inside the ``with``, without the code that issues them."""
    package, before = os.path.dirname(os.path.abspath(__file__)) + os.sep, warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if filename.startswith(package):
            return f"{category.__name__}: {escaped(one_line(message))}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Print without errors inside the ``with``: on stdout and stderr, and for every library.

    A character that the encoding does not have is escaped. Output is dropped once it cannot be written, because its
    reader has ended (``humanline data … | head``), its terminal is closed or its disk is full.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_unfailing(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream:  # None in a process without output
                stream.flush()
        sys.stdout, sys.stderr = before


class _Output(io.TextIOWrapper):
    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return self._drop(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._drop("")

    def _drop(self, text: str) -> int:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return len(text)


def _unfailing(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    if stream not in (sys.__stdout__, sys.__stderr__):  # a stream in memory, or another program's
        return stream
    with suppress(OSError):
        stream.flush()
    file = open(stream.fileno(), "wb", closefd=False)  # noqa: SIM115
    return _Output(
        file,
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
