"""Which checkpoints a run keeps: planned ones up to a limit, that of the best model, and one of a stop."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from humanline_fused.training.run.checkpoint import IDENTITY, STAGING, checkpoints, remove_staging
from humanline_fused.training.run.manifest import damage

UNPLANNED = "unplanned"
"""Key that marks a checkpoint of a run that had to stop. The next checkpoint takes its place."""


def unplanned(folder: Path) -> bool:
    """Return whether a checkpoint was saved because the run had to stop."""
    try:
        identity = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(identity, dict) and identity.get(UNPLANNED) is True


def tidy(newest: Path, limit: int | None, best: str | None) -> None:
    """Remove the checkpoints that a run's newest one replaces. A kill leaves no part of one.

    They are the unplanned ones before it and, if it is planned, the oldest planned ones beyond a limit, but the best
    model's.

    Args:
        newest: the run's newest checkpoint; one of a later step is of a run that was continued from an earlier one.
        limit: number of checkpoints to keep, ``save_total_limit``; None or 0: all.
        best: the best model's checkpoint.
    """
    found = checkpoints(newest.parent)
    stopped = [folder for folder in found if unplanned(folder)]
    before = found[found.index(newest) + 1 :]
    _remove(newest.parent, [folder for folder in stopped if folder in before])
    if limit and limit > 0 and newest not in stopped:
        planned = [folder for folder in found if folder != newest and folder not in stopped]
        protected = [folder for folder in planned if best and folder.name == Path(best).name]
        free = [folder for folder in planned if folder not in protected]
        _remove(newest.parent, free[max(limit - 1 - len(protected), 0) :])


def _remove(run_dir: Path, folders: Iterable[Path]) -> None:
    for folder in folders:
        staging = run_dir / STAGING
        staging.mkdir(exist_ok=True)
        os.rename(folder, staging / f"{folder.name}.removed")
        remove_staging(run_dir)


def best_model(recorded: str | None, run_dir: Path) -> Path | None:
    """Return the best model's checkpoint: in the run's folder, which may be a copy, or else where it was written."""
    if recorded is None:
        return None
    here = run_dir / Path(recorded).name
    return here if here.is_dir() else Path(recorded)


def refuse_damaged_best(best: Path | None) -> None:
    """Raise ValueError if the best model so far, if any, can no longer be loaded. Reads its checkpoint."""
    if best and (found := damage(best, model_alone=True)):
        damaged = "; ".join(f"{best}/{one}" for one in found)
        raise ValueError(
            f"load_best_model_at_end: expected the best model so far, but {damaged}. To go on without it, pass "
            "load_best_model_at_end=False (--load_best_model_at_end false)"
        )
