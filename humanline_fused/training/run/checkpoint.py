"""Atomic checkpoints, and the choice of the checkpoint to resume from."""

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

STAGING = ".writing"
"""Subfolder of the run's folder in which a checkpoint is written before it gets its final name."""

MANIFEST = "files.json"
"""File with the sizes in bytes of all files of a checkpoint, by relative path. Written last."""

START_OVER = "To start over, remove them or use another output_dir (a checkpoint's weights can be the new run's model)"
"""Advice where no checkpoint can be resumed from."""

_NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path) -> None:
    """Write the list of files and sizes that :func:`faults` compares with."""
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    with (folder / MANIFEST).open("w") as file:
        file.write(json.dumps(sizes, indent=1))
        file.flush()
        os.fsync(file.fileno())


def publish(staged: Path, final: Path) -> None:
    """Rename a staged checkpoint to its final name, replacing an existing one.

    A replacement takes two renames. If the run is killed between them, :func:`recover` completes the second.
    """
    seal(staged)
    if final.exists():
        os.rename(final, staged.with_name(f"{staged.name}.replaced"))
    os.rename(staged, final)
    shutil.rmtree(staged.parent)


def recover(output_dir: str | Path) -> None:
    """Publish complete checkpoints that a killed run left in the staging folder."""
    for staged in Path(output_dir, STAGING).glob("*"):
        final = Path(output_dir, staged.name)
        if _NAME.fullmatch(staged.name) and not final.exists() and not faults(staged):
            with contextlib.suppress(FileNotFoundError):  # another rank was faster
                os.rename(staged, final)


def faults(folder: Path) -> list[str]:
    """Return descriptions of what a checkpoint lacks for resuming; empty for a complete one."""
    try:
        sizes: dict[str, int] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return [f"{MANIFEST} is missing or unreadable"]
    found = []
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif file.stat().st_size != size:
            found.append(f"{name} has {file.stat().st_size} bytes instead of {size}")
    if "optimizer.pt" not in sizes and not any(name.startswith(("optimizer", "global_step")) for name in sizes):
        found.append("saved without the optimizer (save_only_model)")
    return found


def step_of(folder: Path) -> int:
    """Return the number of optimizer steps before a complete checkpoint."""
    return json.loads((folder / "trainer_state.json").read_text())["global_step"]


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the checkpoints in ``output_dir``, complete or not, from the newest to the oldest."""
    steps = {folder: int(match[1]) for folder in Path(output_dir).glob("*") if (match := _NAME.fullmatch(folder.name))}
    return sorted((folder for folder in steps if folder.is_dir()), key=steps.__getitem__, reverse=True)


def newest_complete(output_dir: str | Path) -> Path | None:
    """Return the complete checkpoint with the highest step in ``output_dir``, or None."""
    return next((folder for folder in checkpoints(output_dir) if not faults(folder)), None)


def reasons(folders: Iterable[Path]) -> str:
    """Return what checkpoints lack for resuming, as text; neighbours that lack the same are listed together."""
    alike = groupby(folders, key=lambda folder: ", ".join(faults(folder)))
    return "; ".join(f"{', '.join(folder.name for folder in group)}: {reason}" for reason, group in alike)


def describe_resume(folder: Path) -> str:
    """Return one line: the checkpoint that a run resumes from, and why newer ones cannot be resumed from."""
    line = f"resumed from {folder}, step {step_of(folder)}"
    newer = [other for other in checkpoints(folder.parent) if _step_in(other.name) > _step_in(folder.name)]
    damaged = [other for other in newer if faults(other)]
    return f"{line} (not from {reasons(damaged)})" if damaged else line


def _step_in(name: str) -> float:
    """Return the step in a checkpoint's name; infinity for another name, for which no checkpoint is newer."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else math.inf


def resolve_resume(output_dir: str | Path, resume: str | bool | None) -> str | None:
    """Turn ``resume_from_checkpoint`` into a verified folder, or None for a fresh start.

    Args:
        output_dir: the run's folder.
        resume: a folder; ``"auto"``: the newest complete checkpoint, or a fresh start if there is no checkpoint; True
            or ``"true"``: the newest complete checkpoint, which must exist; None, False or ``"false"``: a fresh start.

    Raises:
        ValueError: the checkpoint is incomplete or missing, or the folder has later checkpoints or those of an
            earlier run, with which new ones would mix.
    """
    if isinstance(resume, str) and resume.lower() in ("true", "false"):
        resume = resume.lower() == "true"
    recover(output_dir)
    found = checkpoints(output_dir)
    newest = newest_complete(output_dir)
    if newest is None and found and (resume is True or resume == "auto"):
        raise ValueError(
            f"resume_from_checkpoint={resume!r}: expected a complete checkpoint in {output_dir}, got {reasons(found)}. "
            f"{START_OVER}"
        )
    if resume is None or resume is False:
        if newest:
            raise ValueError(
                f"{newest} is from an earlier run: continue it with resume_from_checkpoint='auto' "
                "(--resume_from_checkpoint auto), or start in another output_dir"
            )
        if found:
            raise ValueError(
                f"{output_dir} has checkpoints of an earlier run, none of which can be resumed from: {reasons(found)}. "
                f"{START_OVER}"
            )
        return None
    if resume == "auto":
        return str(newest) if newest else None
    if resume is True:
        if newest is None:
            raise ValueError(f"resume_from_checkpoint=True: expected a complete checkpoint in {output_dir}, found none")
        return str(newest)
    if lacking := faults(Path(resume)):
        raise ValueError(f"{resume} is not a complete checkpoint: {'; '.join(lacking)}")
    if newest and step_of(newest) > step_of(Path(resume)):
        raise ValueError(f"{newest} is newer than {resume}: remove it, or resume into another output_dir")
    return str(resume)


def unsaved(error: Exception, run_dir: Path, name: str) -> OSError:
    """Return the error for a checkpoint that could not be written, with the checkpoint to resume from."""
    newest = newest_complete(run_dir)
    kept = f"{newest} is complete: resume from it" if newest else "There is no earlier one"
    return OSError(f"{run_dir / name} could not be written ({error}). {kept}")


def save_atomically(state: Any, path: Path) -> None:
    """Call ``torch.save`` with a temporary name, then rename, so that a reader never sees a partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{STAGING}")
    torch.save(state, temporary)
    os.replace(temporary, path)
