"""Writes that survive a power cut: a file or folder appears under its name when all of it is on the disk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

UNFINISHED = ".writing"
"""Suffix of the name under which a file is written."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that replaces ``path`` at the end of the block; after an error the old one stays.

    The unfinished file is a new one. A link that has its name is removed, not followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    unfinished.unlink(missing_ok=True)
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)  # the disk may be full
        raise
    sync(path.parent)


@contextmanager
def writing_output(path: Path) -> Iterator[IO[bytes]]:
    """As :func:`replacing`, for a path that a user names: through a link, and into what is no file, as a pipe."""
    if path.exists() and not path.is_file():
        with path.open("wb") as pipe:
            yield pipe
    else:
        with replacing(path.resolve()) as file:
            yield file


def write_text(path: Path, text: str) -> None:
    """Replace a file by ``text``."""
    with replacing(path) as file:
        file.write(text.encode())


def save(state: Any, path: Path) -> None:
    """Replace a file by what ``torch.save`` makes of ``state``."""
    with replacing(path) as file:
        torch.save(state, file)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until everything in ``folder`` is on the disk."""
    for inside, _, names in os.walk(folder):
        for name in names:
            sync(Path(inside, name))
        sync(Path(inside))
