"""Atomic checkpoints, and the choice of the checkpoint to resume from."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from humanline_fused import durable
from humanline_fused.training.run.earlier_run import finished
from humanline_fused.training.run.manifest import damage, faults, has_hashes, seal

STAGING = durable.UNFINISHED
"""Subfolder of the run's folder in which a checkpoint is written before it gets its final name."""

IDENTITY = "run.json"
"""File of a checkpoint with the run that it belongs to, and the number of its processes."""

PROCESSES = "processes"
"""Key of the number of processes that wrote a checkpoint; a run with another number may resume from it."""

START_OVER = (
    "To start over, pass overwrite_output_dir=True (--overwrite_output_dir true), which removes them, or use another "
    "output_dir (a checkpoint's weights can be the new run's model)"
)
"""Advice where no checkpoint can be resumed from."""

_NAME = re.compile(r"checkpoint-(\d+)")


def publish(staged: Path, final: Path) -> None:
    """Rename a staged checkpoint to its final name, replacing an existing one.

    A replacement takes two renames. If the run is killed between them, :func:`recover` completes the second.
    """
    seal(staged)
    if final.exists():
        os.rename(final, staged.with_name(f"{staged.name}.replaced"))
    os.rename(staged, final)
    durable.sync(final.parent)
    remove_staging(final.parent)


def remove_staging(output_dir: Path) -> None:
    """Remove the staging folder; of a link that has its name, the link alone."""
    staging = output_dir / STAGING
    if staging.is_symlink():
        staging.unlink()
    shutil.rmtree(staging, ignore_errors=True)


def recover(output_dir: str | Path) -> None:
    """Publish complete checkpoints that a killed run left in the staging folder."""
    for staged in Path(output_dir, STAGING).glob("*"):
        final = Path(output_dir, staged.name)
        if _NAME.fullmatch(staged.name) and not final.exists() and not faults(staged):
            os.rename(staged, final)
            durable.sync(final.parent)


def step_of(folder: Path) -> int:
    """Return the number of optimizer steps before a complete checkpoint."""
    return _trainer_state(folder)["global_step"]


def last_step_of(folder: Path) -> int:
    """Return the number of optimizer steps of the whole run, as a complete checkpoint has it."""
    return _trainer_state(folder)["max_steps"]


def best_model_of(folder: Path) -> str | None:
    """Return the checkpoint of the best model so far, as a complete checkpoint has it."""
    return _trainer_state(folder).get("best_model_checkpoint")


def _trainer_state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))


def missing_rng(folder: Path, rank: int, processes: int) -> list[str]:
    """Return a description of the rank's state of random numbers if it is missing, as it is on another disk.

    Only as many processes as wrote the checkpoint draw the same numbers, so for others none is missing. The list of
    files is written on one disk, so it does not have the files of others.
    """
    written = json.loads((folder / IDENTITY).read_text(encoding="utf-8")) if (folder / IDENTITY).is_file() else {}
    name = f"rng_state_{rank}.pth"
    alone = processes == 1 or written.get(PROCESSES) != processes
    return [] if alone or (folder / name).is_file() else [f"{name} is missing"]


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the checkpoints in ``output_dir``, complete or not, from the newest to the oldest."""
    steps = {folder: int(match[1]) for folder in Path(output_dir).glob("*") if (match := _NAME.fullmatch(folder.name))}
    return sorted((folder for folder in steps if folder.is_dir()), key=steps.__getitem__, reverse=True)


def newest_complete(output_dir: str | Path, *, model_alone: bool = False) -> Path | None:
    """Return the complete checkpoint with the highest step in ``output_dir``, or None; or one with a whole model."""
    return next((folder for folder in checkpoints(output_dir) if not faults(folder, model_alone=model_alone)), None)


def complete_checkpoint(folder: Path, step: int | None = None, *, model_alone: bool = False) -> Path:
    """Return the checkpoint of ``step`` in a run's folder, verified; default the newest complete one.

    Args:
        folder: the run's folder.
        step: number of optimizer steps before the checkpoint.
        model_alone: one with a whole model will do, also if it was saved without the optimizer (``save_only_model``).

    Raises:
        ValueError: there is no such complete checkpoint; the message lists those that there are.
    """
    lacks = partial(faults, model_alone=model_alone)
    complete = {int(found.name.split("-")[1]): found for found in checkpoints(folder) if not lacks(found)}
    if not complete:
        raise ValueError(f"{folder}: expected a complete checkpoint, found none (save_strategy, save_steps)")
    chosen = max(complete) if step is None else step
    if chosen not in complete:
        has = ", ".join(map(str, sorted(complete)))
        raise ValueError(f"{folder}: expected a complete checkpoint-{step}, it has those of steps {has}")
    if damaged := damage(complete[chosen], model_alone=model_alone):
        raise ValueError(f"{complete[chosen]}: {'; '.join(damaged)}")
    return complete[chosen]


def reasons(folders: Iterable[Path]) -> str:
    """Return why checkpoints cannot be resumed from, as text; neighbours with the same reason are listed together."""
    alike = groupby(folders, key=lambda folder: ", ".join(damage(folder)))
    return "; ".join(f"{', '.join(folder.name for folder in group)}: {reason}" for reason, group in alike)


def describe_resume(folder: Path) -> str:
    """Return one line: the checkpoint that a run resumes from, and why newer ones cannot be resumed from."""
    line = f"resumed from {folder}, step {step_of(folder)}"
    newer = [other for other in checkpoints(folder.parent) if _step_in(other.name) > _step_in(folder.name)]
    if damaged := [other for other in newer if damage(other)]:
        line += f" (not from {reasons(damaged)})"
    return line if has_hashes(folder) else f"{line}; written without hashes, so its files' sizes alone were compared"


def _step_in(name: str) -> float:
    """Return the step in a checkpoint's name; infinity for another name, for which no checkpoint is newer."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else math.inf


def resolve_resume(
    output_dir: str | Path, resume: str | bool | None, *, overwrite: bool = False, contents: bool = True
) -> str | None:
    """Turn ``resume_from_checkpoint`` into a verified folder, or None for a fresh start.

    Args:
        output_dir: the run's folder.
        resume: a folder; ``"auto"``: the newest usable checkpoint, or a fresh start if there is no checkpoint; True
            or ``"true"``: the newest usable checkpoint, which must exist; None, False or ``"false"``: a fresh start.
        overwrite: a fresh start may take the place of an earlier run; with ``"auto"`` of one that cannot be continued.
        contents: compare the files' hashes too, which reads the checkpoint, and complete what a killed run left. False
            changes nothing in the folder, in which another run may be writing.

    Raises:
        ValueError: the checkpoint is damaged or missing, or the folder has later checkpoints or those of an earlier
            run, with which new ones would mix, or a finished run.
    """
    if isinstance(resume, str) and resume.lower() in ("true", "false"):
        resume = resume.lower() == "true"
    if overwrite and resume not in (None, False, "auto"):
        raise ValueError(f"overwrite_output_dir starts over, so it cannot be used with {resume_setting(resume)}")
    if contents:
        recover(output_dir)
    found = checkpoints(output_dir)
    check = damage if contents else faults
    if not resume:
        if found and not overwrite:
            raise ValueError(_not_over(Path(output_dir), found))
    elif resume == "auto" or resume is True:
        if newest := next((folder for folder in found if not check(folder)), None):
            return str(newest)
        if resume is True and not found:
            raise ValueError(f"{resume_setting(resume)}: expected a complete checkpoint in {output_dir}, found none")
        if found and not overwrite:
            raise ValueError(
                f"{resume_setting(resume)}: expected a complete checkpoint in {output_dir}, got {reasons(found)}. "
                f"{START_OVER}"
            )
    else:
        if lacking := check(Path(resume)):
            raise ValueError(f"{resume} is not a complete checkpoint: {'; '.join(lacking)}")
        newest = newest_complete(output_dir)
        if contents and newest and _step_in(newest.name) > step_of(Path(resume)):
            raise ValueError(f"{newest} is newer than {resume}: remove it, or resume into another output_dir")
        if Path(resume).resolve().parent == Path(output_dir).resolve():
            return str(resume)
    if not overwrite and (left := finished(Path(output_dir))):
        raise ValueError(
            f"{output_dir} has a finished run ({left}) without checkpoints: use another output_dir, or "
            "overwrite_output_dir=True (--overwrite_output_dir true) to start over"
        )
    return str(resume) if isinstance(resume, str) and resume != "auto" else None


def refuse_early(output_dir: str | Path, resume: str | bool | None, *, overwrite: bool) -> None:
    """Raise the ValueError of :func:`resolve_resume`, as far as names and sizes tell, before anything is loaded."""
    if not Path(output_dir, STAGING).exists():  # else a run is writing, or there is something to complete
        resolve_resume(output_dir, resume, overwrite=overwrite, contents=False)


def resume_setting(resume: object) -> str:
    """Return the setting as text.

    >>> resume_setting("auto")
    "resume_from_checkpoint='auto'"
    """
    return f"resume_from_checkpoint={resume!r}"


def _not_over(output_dir: Path, found: list[Path]) -> str:
    """Return why a run does not start over in a folder with checkpoints."""
    if newest := newest_complete(output_dir):
        return (
            f"{newest} is from an earlier run: continue it with resume_from_checkpoint='auto' "
            "(--resume_from_checkpoint auto), start in another output_dir, or pass overwrite_output_dir=True "
            "(--overwrite_output_dir true), which removes it"
        )
    return (
        f"{output_dir} has checkpoints of an earlier run, none of which can be resumed from: {reasons(found)}. "
        f"{START_OVER}"
    )
