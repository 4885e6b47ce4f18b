"""Folders of data files: which files are a split."""

import re
from collections.abc import Iterable
from glob import escape
from pathlib import Path

from datasets import config
from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

from humanline_fused.training.data.reading.files import format_of

FAMILY = {".jsonl": "JSON", ".ndjson": "JSON", ".json": "JSON"}
ARCHIVES = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip", ".tar", ".7z", ".arrow")
"""Endings of data that ``datasets`` reads and the readers do not."""


def files_by_split(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each split, by the rules of ``datasets.load_dataset``.

    A split is a folder or a part of the files' names: train, test, validation and other words for them; else all files
    are "train". Files that are no data are left out.

    Returns:
        Empty if ``load_dataset`` has to read the folder: its card or a script says how, or its data have other formats.

    Raises:
        ValueError: a split has files of several formats, of which ``load_dataset`` would read the most frequent one.
    """
    if _has_rules(folder):
        return {}
    base = folder.resolve()
    literally = escape(str(base))
    try:
        patterns = get_data_patterns(literally)
    except EmptyDatasetError:
        return {}
    found: dict[str, list[Path]] = {}
    for split, names in DataFilesDict.from_patterns(patterns, base_path=literally).items():
        files = [folder / Path(name).relative_to(base) for name in dict.fromkeys(names)]
        readable = [file for file in files if format_of(file)]
        if any(file.suffix.lower() in ARCHIVES for file in files if file not in readable):
            return {}
        _check_one_format(folder, readable)
        if readable:
            found[str(split)] = readable
    return found


def _has_rules(folder: Path) -> bool:
    """Return True if a dataset card with ``configs``, its stand-alone file or a script says what the data are."""
    if (folder / config.REPOYAML_FILENAME).is_file() or (folder / f"{folder.resolve().name}.py").is_file():
        return True
    card = folder / config.REPOCARD_FILENAME
    text = card.read_text(encoding="utf-8-sig", errors="replace") if card.is_file() else ""
    header = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
    return bool(header and re.search(r"^configs\s*:", header[1], re.MULTILINE))


def _check_one_format(folder: Path, files: Iterable[Path]) -> None:
    firsts: dict[str, Path] = {}
    for file in files:
        ending = format_of(file)
        firsts.setdefault(FAMILY.get(ending, ending), file)
    if len(firsts) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in firsts.values())
        raise ValueError(f"{folder}: expected data files of one format, got {names}: name one file, or move the others")
