"""Lines of text files: UTF-8, with or without a byte-order mark, plain or compressed by gzip."""

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")
UNDECODED = re.compile("[\udc80-\udcff]")
"""Stands for a byte that is not UTF-8, in text decoded with ``surrogateescape``."""


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file with their ends, which are LF, CRLF or CR.

    Raises:
        ValueError: the file is not UTF-8 (with the line), is UTF-16, or cannot be decompressed.
    """
    number = 0
    try:
        with _opened(path) as file:
            if _is_utf_16(file.peek(4)[:4]):
                raise ValueError(f"{path}: expected UTF-8 text, got UTF-16: save the file as UTF-8")
            for line in io.TextIOWrapper(file, "utf-8-sig", newline=""):
                number += 1
                yield line
    except UnicodeDecodeError:
        raise _undecoded(path) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}, line {number + 1}: cannot be decompressed: {error}") from None


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _undecoded(path: Path) -> ValueError:
    """Return the error for the first line that is not UTF-8."""
    with _opened(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        number, wrong = next((n, found) for n, line in enumerate(text, 1) if (found := UNDECODED.search(line)))
    return ValueError(
        f"{path}, line {number}: expected UTF-8 text, got the byte 0x{ord(wrong[0]) - 0xDC00:02x} at character "
        f"{wrong.start()}: save the file as UTF-8 (it may be Latin-1 or Windows-1252)"
    )


def leftover(line: str) -> str:
    """Return what the control characters of a line are left over from; empty for a line without any.

    >>> leftover("\\x1a"), leftover("a")
    ('the end-of-file mark of DOS: delete it', '')
    """
    characters = set(line.strip())
    if characters == {"\x1a"}:
        return "the end-of-file mark of DOS: delete it"
    if characters == {"\0"}:
        return "NUL bytes: the file was not written to its end"
    return "a byte-order mark inside the file, as of files that were joined: delete it" if "\ufeff" in line[:1] else ""


def _is_utf_16(start: bytes) -> bool:
    if start[:2] in BYTE_ORDER_MARKS:
        return True
    zeros = [byte == 0 for byte in start]
    return zeros in ([False, True, False, True], [True, False, True, False])
