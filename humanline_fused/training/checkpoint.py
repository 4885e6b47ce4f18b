"""Checkpoints that exist whole or not at all, and how a run finds the one to continue from."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

STAGING = ".writing"
"""Folder in the run's folder where a checkpoint is written before it gets its name."""

MANIFEST = "files.json"
"""Sizes of all files of a checkpoint, in bytes, by relative path. Written last."""

_NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path) -> None:
    """Write the list of files and sizes that :func:`verify` holds a checkpoint to."""
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    (folder / MANIFEST).write_text(json.dumps(sizes, indent=1))


def publish(staged: Path, final: Path) -> None:
    """Give a staged checkpoint its name in one rename. One that has the name already is replaced."""
    seal(staged)
    replaced = staged.with_name(f"{staged.name}.replaced")
    if final.exists():
        os.rename(final, replaced)
    os.rename(staged, final)
    shutil.rmtree(staged.parent)


def faults(folder: Path) -> list[str]:
    """What a checkpoint lacks to be resumed from, in words; empty for a whole one."""
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
        found.append("it was saved without the optimizer (save_only_model)")
    return found


def newest_complete(output_dir: str | Path) -> Path | None:
    """The complete checkpoint of the highest step in ``output_dir``; None where there is none."""
    folders = [(int(match[1]), p) for p in Path(output_dir).glob("*") if (match := _NAME.fullmatch(p.name))]
    return next((folder for _, folder in sorted(folders, reverse=True) if not faults(folder)), None)


def resolve_resume(output_dir: str | Path, resume: str | bool | None) -> str | None:
    """Turn ``resume_from_checkpoint`` into a verified folder, or None for a fresh start.

    Args:
        output_dir: the run's folder.
        resume: a folder; ``"auto"``: the newest complete checkpoint, or a fresh start where there is none; True: the
            newest complete checkpoint, which has to exist; None or False: a fresh start.

    Raises:
        ValueError: the checkpoint is not whole, there is none, or a fresh start would mix its checkpoints with those of
            an earlier run.
    """
    newest = newest_complete(output_dir)
    if resume is None or resume is False:
        if newest:
            raise ValueError(
                f"{newest} is from an earlier run: continue it with resume_from_checkpoint='auto' "
                "(--resume_from_checkpoint auto), or start in another output_dir"
            )
        return None
    if resume == "auto":
        return str(newest) if newest else None
    if resume is True:
        if newest is None:
            raise ValueError(f"resume_from_checkpoint=True: expected a complete checkpoint in {output_dir}, found none")
        return str(newest)
    found = faults(Path(resume))
    if found:
        raise ValueError(f"{resume} is not a complete checkpoint: {'; '.join(found)}")
    return str(resume)


def save_atomically(state: Any, path: Path) -> None:
    """``torch.save`` under a temporary name, then rename: a reader sees all of the file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{STAGING}")
    torch.save(state, temporary)
    os.replace(temporary, path)
