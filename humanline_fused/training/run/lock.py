"""Lock of a run's folder: two runs in one folder would overwrite each other's files."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LOCK = ".lock"
"""File with host and process of the run that writes into the folder. The kernel frees it when the process ends."""

_BUSY = (errno.EACCES, errno.EAGAIN)

_held: set[Path] = set()
"""Folders of this process, against itself: the kernel tells processes apart, not runs."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if it is missing.

    A file that a killed run left locks nothing. Processes that this one forks do not hold the lock. Where a file
    system has no locks, the process that the file names is looked for.

    Raises:
        BlockingIOError: a run writes into the folder.
        OSError: the folder cannot be written, or the file is a symbolic link.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    if folder in _held:
        raise _in_use(folder, _me())
    file = _acquired(folder / LOCK)
    _held.add(folder)
    try:
        yield
    finally:
        _held.discard(folder)
        (folder / LOCK).unlink(missing_ok=True)
        file.close()


def refuse_writer(folder: Path) -> None:
    """Raise BlockingIOError if a run writes into the folder. Changes nothing there."""
    if folder.resolve() in _held:
        raise _in_use(folder, _me())
    try:
        file = (folder / LOCK).open(encoding="utf-8")
    except OSError:
        return
    with file:
        holder = _read(file)
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY or _may_run(holder):
                raise _in_use(folder, holder) from error


def _acquired(path: Path) -> IO[str]:
    """Return the locked file, with this process in it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        file = os.fdopen(descriptor, "r+", encoding="utf-8")
        holder = _read(file)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY or _may_run(holder):
                file.close()
                raise _in_use(path.parent, holder) from error
        if _is_there(file, path):  # else the earlier run removed it after it was opened here
            try:
                file.seek(0)
                file.truncate()
                file.write(json.dumps(_me()))
                file.flush()
            except OSError as error:
                with suppress(OSError):
                    file.close()
                raise OSError(error.errno, error.strerror, str(path)) from error
            return file
        file.close()


def _me() -> dict[str, object]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _read(file: IO[str]) -> dict[str, object]:
    """Return the host and process in the file; an empty one if it has none."""
    try:
        holder = json.loads(file.read())
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _may_run(holder: dict[str, object]) -> bool:
    """Return whether the process may run: it does on this host, or is on another one."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return bool(holder)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_there(file: IO[str], path: Path) -> bool:
    """Return whether the open file is the one that has the name."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file.fileno()), there)


def _in_use(folder: Path, holder: dict[str, object]) -> BlockingIOError:
    who = f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "another process"
    return BlockingIOError(
        f"{folder} is in use by the run of {who}: wait for its end, or use another output_dir. "
        f"If it no longer runs there, remove {folder / LOCK}"
    )
