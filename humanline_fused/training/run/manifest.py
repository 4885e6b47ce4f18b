"""The list of a checkpoint's files, with sizes and hashes, that loading compares with."""

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from humanline_fused import durable

MANIFEST = "files.json"
"""File with size and SHA-256 of all files of a checkpoint, by relative path, and with its own. Written last.

Earlier versions wrote the sizes alone.
"""

_WEIGHTS = re.compile("(adapter_|pytorch_)?model[-._]|global_step")
"""Files of a checkpoint with weights, of whole models, adapters, FSDP and DeepSpeed."""


@dataclass(frozen=True)
class Entry:
    """One file.

    Attributes:
        bytes: its size.
        sha256: of its content, hexadecimal; None in a list of an earlier version.
    """

    bytes: int
    sha256: str | None = None


def seal(folder: Path) -> None:
    """Wait until all files of a checkpoint are on the disk, then list them."""
    durable.sync_tree(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST)
    entries = {str(file.relative_to(folder)): Entry(file.stat().st_size, _sha256(file)) for file in files}
    durable.write_text(folder / MANIFEST, _rendered(entries))


def faults(folder: Path, *, model_alone: bool = False) -> list[str]:
    """Return descriptions of what a checkpoint lacks, by names and sizes; empty for a complete one.

    Args:
        folder: the checkpoint.
        model_alone: what its weights lack; default what it lacks for resuming.
    """
    entries = _read(folder)
    if isinstance(entries, str):
        return [entries]
    if model_alone:
        return _other_sizes(folder, _weights(entries))
    found = _other_sizes(folder, entries)
    if not any(name.startswith(("optimizer", "global_step")) for name in entries):
        found.append("saved without the optimizer (save_only_model)")
    return found


def damage(folder: Path, *, model_alone: bool = False) -> list[str]:
    """Return :func:`faults`, or descriptions of files whose content is not the one that was written.

    Reads all files: about a second per GiB for SHA-256 on one core. Without hashes only what cannot be read is found.
    """
    if found := faults(folder, model_alone=model_alone):
        return found
    entries = cast(dict[str, Entry], _read(folder))
    return _other_contents(folder, _weights(entries) if model_alone else entries)


def _weights(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    return {name: entry for name, entry in entries.items() if _WEIGHTS.match(name)}


def _other_sizes(folder: Path, entries: Mapping[str, Entry]) -> list[str]:
    found = []
    for name, entry in entries.items():
        file = folder / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif file.stat().st_size != entry.bytes:
            found.append(f"{name} has {file.stat().st_size} bytes instead of {entry.bytes}")
    return found


def _other_contents(folder: Path, entries: Mapping[str, Entry]) -> list[str]:
    found = []
    for name, entry in entries.items():
        file = folder / name
        if entry.sha256 is None:
            found += _unreadable(file, name)
        elif _sha256(file) != entry.sha256:
            found.append(f"{name} is damaged, or another checkpoint's (its SHA-256 is not the one in {MANIFEST})")
    return found


def has_hashes(folder: Path) -> bool:
    """Return whether the checkpoint was written with hashes."""
    entries = _read(folder)
    return isinstance(entries, dict) and all(entry.sha256 for entry in entries.values())


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _rendered(entries: dict[str, Entry]) -> str:
    files = {name: asdict(entry) for name, entry in entries.items()}
    own = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": own}, indent=1) + "\n"


def _read(folder: Path) -> dict[str, Entry] | str:
    """Return the list, or why there is none."""
    unreadable = f"{MANIFEST} is missing or unreadable"
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        listed: Any = json.loads(text)
    except (OSError, ValueError):
        return unreadable
    if not isinstance(listed, dict) or not listed:
        return unreadable
    if all(type(size) is int for size in listed.values()):
        return {name: Entry(size) for name, size in listed.items()}
    try:
        entries = {name: Entry(**entry) for name, entry in listed["files"].items()}
    except (KeyError, AttributeError, TypeError):
        return unreadable
    return entries if _rendered(entries) == text else f"{MANIFEST} is damaged (its own SHA-256 is another)"


def _unreadable(file: Path, name: str) -> list[str]:
    """Return why a file without a hash cannot be read; empty if it can, or is of a kind that is not examined."""
    if file.suffix == ".json":
        try:
            content = json.loads(file.read_bytes())
        except ValueError:
            return [f"{name} is not JSON"]
        return [] if isinstance(content, dict) else [f"{name}: expected an object, got {type(content).__name__}"]
    if file.suffix in (".pt", ".pth") and not zipfile.is_zipfile(file):
        return [f"{name} was not written by torch.save"]
    return []
