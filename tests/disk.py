"""``os.fsync`` that does not wait for the disk: no test cuts the power, and a run that is saved waits for 50 files.

A killed process loses nothing that it has written. Commands that tests start as new processes wait as for users.
"""

import os


def do_not_wait_for_the_disk() -> None:
    os.fsync = _fsync


def _fsync(fd: int, /) -> None:
    os.fstat(fd)  # a descriptor that is not open is an error, as with the original
