"""Examples in a few arrays, in memory or in a folder beside a run that all processes share."""

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.plan import Units
from humanline_fused.training.data.tokenizing.tokenization import Ids

ARRAYS = {
    "ids": np.int32,
    "counts": np.bool_,
    "ends": np.int64,
    "weights": np.float64,
    "rewards": np.float64,
    "rows": np.int32,
    "prompts": np.int64,
}
"""Arrays of a store and their types.

``ids`` are the token ids of all examples, prompt first; ``counts``, as long or empty, is True for tokens that count;
``ends``, [examples, 1 + sides], are the ends of prompts and completions in ``ids``. ``rows``, [examples] or empty, are
the numbers of the rows that examples come from, ascending, where those of a row belong together. ``prompts``,
[examples] or empty, are hashes of the texts of their prompts.
"""

LATER = {"rows", "prompts"}
"""Arrays that folders of earlier versions lack; they are empty there."""

UNFINISHED = ".writing-"
"""Suffix of the name of a folder that is being written, followed by what nobody can predict."""

NOTES = "notes.json"
"""File with what is stored beside the arrays."""

CHECKSUMS = "crc32"
"""The note with the checksums of the arrays, and of the other notes under :data:`NOTES`."""


class StoredExamples(Sequence[Example]):
    """Examples whose tensors are views of a few arrays.

    Args:
        arrays: by name, as in :data:`ARRAYS`.
        places: the places of these examples in the arrays, ascending; default all.
    """

    def __init__(self, arrays: dict[str, np.ndarray], places: np.ndarray | None = None) -> None:
        self.arrays = arrays
        # Slices of a memmap cost five times more.
        self._plain = {name: np.asarray(part) for name, part in arrays.items()}
        self._places = np.arange(len(arrays["weights"])) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = int(self._places[range(len(self))[index]])
        ends = self._plain["ends"]
        stops = [int(ends[number - 1, -1]) if number else 0, *ends[number].tolist()]
        prompt, *completions = (self._view("ids", a, b) for a, b in pairwise(stops))
        masks: tuple[Tensor, ...] = ()
        counts = self._plain["counts"]
        if len(counts) and not counts[stops[1] : stops[-1]].all():
            masks = tuple(self._view("counts", a, b) for a, b in pairwise(stops[1:]))
        weight, reward = (float(self._plain[name][number]) for name in ("weights", "rewards"))
        return Example(prompt, tuple(completions), weight, reward, masks)

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def _view(self, name: str, start: int, stop: int) -> Tensor:
        return torch.from_numpy(self._plain[name][start:stop])

    @property
    def units(self) -> Units | None:
        """The examples that belong together; None if each stands alone."""
        rows = self._of_examples("rows")
        return Units(np.flatnonzero(np.diff(rows, prepend=-1)), len(rows)) if len(rows) else None

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of prompts and completions, [examples, 1 + sides]."""
        ends = self._plain["ends"]
        return np.diff(ends.reshape(-1), prepend=0).reshape(ends.shape)[self._places]

    @property
    def prompts(self) -> np.ndarray:
        """A hash of each example's prompt, int64 [examples]; of its token ids where a folder of an earlier version has
        no other."""
        kept = self._of_examples("prompts")
        if len(kept) == len(self):
            return kept
        ids = (example.prompt_ids.numpy().tobytes() for example in self)
        digests = b"".join(hashlib.blake2b(one, digest_size=8).digest() for one in ids)
        return np.frombuffer(digests, "<i8")

    def _of_examples(self, name: str) -> np.ndarray:
        """Return these examples' part of an array that has one number of each example, or none."""
        part = self._plain[name]
        return part[self._places] if len(part) else part

    def subset(self, places: np.ndarray) -> "StoredExamples":
        """Return the examples at these places, ascending, as views of the same arrays."""
        return StoredExamples(self.arrays, self._places[places])

    def checksums(self) -> dict[str, int]:
        """Return the CRC-32 of each array."""
        return {name: zlib.crc32(part.reshape(-1).view(np.uint8).data) for name, part in self._plain.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(part.nbytes for part in self.arrays.values())

    def save(self, folder: Path, notes: dict[str, Any]) -> None:
        """Write the whole arrays and ``notes``, which are JSON, into a new folder, which appears when it is complete.

        Raises:
            OSError: it cannot be written.
        """
        for left in folder.parent.glob(f"{folder.name}{UNFINISHED}*"):  # by a process that was killed
            if left.is_symlink():
                left.unlink()
            shutil.rmtree(left, ignore_errors=True)
        writing = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            writing = Path(tempfile.mkdtemp(prefix=f"{folder.name}{UNFINISHED}", dir=folder.parent))
            writing.chmod(folder.parent.stat().st_mode)  # else its owner alone could read it
            for name, part in self.arrays.items():
                np.save(writing / f"{name}.npy", part)
            checksums = self.checksums() | {NOTES: _checksum(notes)}
            (writing / NOTES).write_text(json.dumps(notes | {CHECKSUMS: checksums}, indent=1) + "\n", encoding="utf-8")
            os.rename(writing, folder)
        except OSError as error:
            if writing is not None:
                shutil.rmtree(writing, ignore_errors=True)
            if not folder.is_dir():  # else another process was faster
                raise OSError(f"{folder}: the tokens of the data cannot be written: {error}") from error


def load(folder: Path) -> tuple[StoredExamples, dict[str, Any]] | None:
    """Return the examples of a folder, memory-mapped, and its notes; None if there is none.

    Raises:
        ValueError: a file is damaged.
    """
    if not folder.is_dir():
        return None
    try:
        absent = {name: np.zeros(0, ARRAYS[name]) for name in LATER if not (folder / f"{name}.npy").exists()}
        present = ARRAYS.keys() - absent.keys()
        stored = StoredExamples(absent | {name: _mapped(folder / f"{name}.npy") for name in present})
        notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        checksums = notes.pop(CHECKSUMS, None)
        if checksums is not None:  # else by an earlier version, as without one of the notes
            if checksums.pop(NOTES, None) not in (None, _checksum(notes)):
                raise ValueError(f"{NOTES}: its CRC-32 is another")
            if checksums != stored.checksums():
                raise ValueError("an array is damaged (its CRC-32 is another)")
    except Exception as error:  # numpy raises errors of many kinds for a damaged file
        raise ValueError(f"{folder}: expected the tokens of an earlier start, remove the folder: {error}") from error
    return stored, notes


def _mapped(file: Path) -> np.ndarray:
    """Return the array of a file, memory-mapped, which ends where the file does."""
    part = np.load(file, mmap_mode="c")
    expected, size = part.offset + part.nbytes, file.stat().st_size
    if size != expected:
        raise ValueError(f"{file.name}: expected {expected} bytes, got {size}")
    return part


def _checksum(notes: dict[str, Any]) -> int:
    """Return the CRC-32 of notes, in the order in which they were written."""
    return zlib.crc32(json.dumps(notes).encode())


class ExampleWriter:
    """Collects examples in growing arrays."""

    def __init__(self, sides: int) -> None:
        self.sides = sides
        self.ids, self.ends, self.weights, self.rewards = array("i"), array("q"), array("d"), array("d")
        self.rows, self.prompts = array("i"), array("q")
        self.counts: array[int] | None = None

    def __len__(self) -> int:
        return len(self.weights)

    def add(
        self,
        parts: Sequence[Ids],
        masks: Sequence[Ids | None],
        weight: float,
        reward: float,
        row: int | None = None,
        key: int | None = None,
    ) -> None:
        """Add an example.

        Args:
            parts: ids of the prompt and of each completion.
            masks: for each completion True for the tokens that count; None if all do.
            weight, reward: as of :class:`~humanline_fused.training.data.examples.Example`.
            row: number of its row, not below that of the example before, if examples of a row belong together.
            key: a hash of its prompt.
        """
        if self.counts is None and any(mask is not None for mask in masks):
            self.counts = array("b", bytes([1]) * len(self.ids))
        for part, mask in zip(parts, (None, *masks), strict=True):
            self.ids.frombytes(part.tobytes())
            self.ends.append(len(self.ids))
            if self.counts is not None:
                self.counts.frombytes(bytes([1]) * len(part) if mask is None else mask.tobytes())
        self.weights.append(weight)
        self.rewards.append(reward)
        if row is not None:
            self.rows.append(row)
        if key is not None:
            self.prompts.append(key)

    def finish(self) -> StoredExamples:
        """Return the examples, without a copy; none can be added afterwards."""
        given = {
            "ids": self.ids,
            "counts": self.counts or array("b"),
            "ends": self.ends,
            "weights": self.weights,
            "rewards": self.rewards,
            "rows": self.rows,
            "prompts": self.prompts,
        }
        arrays = {
            name: np.frombuffer(given[name], kind) if given[name] else np.zeros(0, kind)
            for name, kind in ARRAYS.items()
        }
        arrays["ends"] = arrays["ends"].reshape(-1, 1 + self.sides)
        return StoredExamples(arrays)
