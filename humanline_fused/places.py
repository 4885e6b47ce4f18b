"""Folders and files that are given by name: what a name may mean, and what a wrong one is likely to mean."""

import difflib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

HOLDS = {"settings.json": "a run", "adapter_config.json": "an adapter", "config.json": "a model"}
"""What a folder with such a file is, the first that it has."""

A_MODEL = "a folder of a run or a model, or a model name"

ALIKE = 0.8
"""Least similarity (difflib's ratio) of a name and a folder's that differ by a slip, as two of five letters swapped."""

LISTED = 3
"""Largest number of folders that a message names."""


def refuse_absent(name: str, expected: str) -> None:
    """Raise ValueError for a name that can only be a folder's, if there is none: no library asks a server for it.

    A name with one slash may be a model's on a hub. It is a folder's where a folder here is spelt nearly so, or where
    its first part is a folder here and the hub is offline, unless the hub's cache on this machine has that model. A
    name without a slash is a folder's where a run or a model here differs from it by a slip.

    Args:
        name: of a model or a run.
        expected: for the message.

    >>> refuse_absent("./no", "a model's folder")
    Traceback (most recent call last):
    ...
    ValueError: ./no: expected a model's folder, found no such folder
    """
    if name and Path(name).exists():
        return
    close = nearest_path(Path(name)) if "/" in name else _slip(name)
    hint = f"; did you mean {close}?" if close else ""
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/") or not name:
        raise ValueError(f"{name}: expected {expected}, found no such folder{hint}")
    beside = Path(name).parent
    if (close or ("/" in name and beside.is_dir() and _is_offline())) and not _is_cached(name):
        raise ValueError(
            f"{name}: expected {expected}, found no such folder{hint or f' in {beside}'} "
            f"(if a model of the hub is meant: hf download {name})"
        )


def what_is_here(name: str) -> str:
    """Return what to say of a name that no hub knows: the folder that may be meant, or where there is none.

    Empty for the name of a folder, and for one that can be none.
    """
    place = Path(name)
    if place.exists():
        return ""
    none = f"; found no such folder in {place.parent} either" if "/" in name and place.parent.is_dir() else ""
    return did_you_mean(place) or none


def refuse_output_file(file: Path) -> None:
    """Raise ValueError for an output file that cannot be written, so that no work is done for it.

    >>> refuse_output_file(Path("no/plot.png"))
    Traceback (most recent call last):
    ...
    ValueError: no/plot.png: expected a file in a folder that exists, found no folder no
    """
    if file.is_dir():
        raise ValueError(f"{file}: expected a file to write, got a folder")
    if not file.parent.is_dir():
        expected = f"expected a file in a folder that exists, found no folder {file.parent}"
        raise ValueError(f"{file}: {expected}{did_you_mean(file.parent)}")


def did_you_mean(place: Path, wanted: Callable[[Path], bool] = Path.is_dir) -> str:
    """Return ``; did you mean …?`` for a path that does not exist; for a folder, which folders may be meant instead.

    Args:
        place: the path.
        wanted: whether an existing path may be meant.

    Returns:
        Empty if there is nothing to say.
    """
    if place.is_dir():
        around = [(folder, what) for folder in (place.parent, *_entries(place)) if (what := _is(folder))]
        named = "".join(f"; {folder} is {what}" for folder, what in around[:LISTED])
        return named + (f"; {len(around) - LISTED} more" if len(around) > LISTED else "")
    close = None if place.exists() else nearest_path(place, wanted)
    return f"; did you mean {close}?" if close else ""


def nearest_path(place: Path, wanted: Callable[[Path], bool] = Path.is_dir) -> Path | None:
    """Return the existing path that is spelt most like ``place``, part by part; None if a part is like none.

    A ``~`` at its beginning, which a shell has not expanded, is the home.

    Args:
        place: the path.
        wanted: whether an existing path may be returned.
    """
    place = Path(os.path.expanduser(place))
    found = Path(place.anchor)
    parts = place.relative_to(place.anchor).parts
    for number, part in enumerate(parts, 1):
        fits = wanted if number == len(parts) else Path.is_dir
        if part == ".." or fits(found / part):
            found /= part
            continue
        names = {other.name.lower(): other.name for other in _entries(found) if fits(other)}
        close = difflib.get_close_matches(part.lower(), names, n=1)
        if not close:
            return None
        found /= names[close[0]]
    return found if parts else None


def _slip(name: str) -> Path | None:
    """Return the run or model, or the folder of some, whose name here differs from ``name`` by a slip of typing.

    A folder is often called after the model of the hub that it was trained from (``gpt2-dpo``): that is no slip.
    """

    def meant(place: Path) -> bool:
        return place.is_dir() and any(map(_is, (place, *_entries(place))))

    close = nearest_path(Path(name), meant)
    if close is None or abs(len(close.name) - len(name)) > 1:
        return None
    return close if difflib.SequenceMatcher(None, name.lower(), close.name.lower()).ratio() >= ALIKE else None


def _is(folder: Path) -> str | None:
    """Return what a folder is, by its files; None if it is none of those."""
    return next((what for file, what in HOLDS.items() if (folder / file).is_file()), None)


def _entries(folder: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(folder.iterdir())
    return []


def _is_offline() -> bool:
    """Return whether the hub is not to be asked (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _is_cached(name: str) -> bool:
    """Return whether the hub's cache has files of a model."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}").is_dir()
