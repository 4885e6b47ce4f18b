"""Errors of writing, as one line that names the file and the checkpoint to resume from, on all ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils import gather_object
from safetensors import SafetensorError

from humanline_fused.printing import one_line
from humanline_fused.training.run.checkpoint import newest_complete
from humanline_fused.training.run.process_group import waited_in_vain

ERRORS = (OSError, RuntimeError, SafetensorError)
"""What a full disk makes of a write by Python, torch and safetensors."""


def unwritten(error: Exception, file: Path, run_dir: Path) -> OSError:
    """Return the error of a file that could not be written, with the newest usable checkpoint of the run."""
    newest = newest_complete(run_dir)
    kept = f"{newest} is complete: resume from it" if newest else "There is no checkpoint to resume from"
    return OSError(f"{file} could not be written ({one_line(error)}). {kept}")


@contextmanager
def writing(file: Path, run_dir: Path) -> Iterator[None]:
    """Raise an error of one rank's writes on every rank, so that none waits for it forever. Collective.

    Args:
        file: the file or folder that is written, for the message.
        run_dir: the run's folder.

    Raises:
        OSError: :func:`unwritten` of the first rank that has an error.
    """
    with on_all_ranks():
        try:
            yield
        except ERRORS as error:
            if waited_in_vain(error):
                raise
            raise unwritten(error, file, run_dir) from error


@contextmanager
def on_all_ranks() -> Iterator[None]:
    """Raise an OSError of one rank on every rank. Collective."""
    failed: OSError | None = None
    try:
        yield
    except OSError as error:
        failed = error
    for error in gather_object([failed]):
        if error is not None:
            raise error from (failed and failed.__cause__)
