"""All accesses of a launch in one table, and groups of its rows."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tests.ptx.record import Access
from tests.ptx.views import REGION_BITS


@dataclass
class Accesses:
    """One row per lane and access: the fields of ``Access``, and which of the accesses a row belongs to."""

    number: np.ndarray
    write: np.ndarray
    width: np.ndarray
    address: np.ndarray
    warp: np.ndarray
    epoch: np.ndarray
    request: np.ndarray

    @classmethod
    def of(cls, accesses: Iterable[Access]) -> "Accesses":
        found = list(accesses)
        lengths = [len(access.address) for access in found]

        def repeated(values: list[Any], dtype: Any) -> np.ndarray:
            return np.repeat(np.array(values, dtype), lengths)

        def joined(values: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(values).astype(np.int64) if values else np.empty(0, np.int64)

        return cls(
            repeated([access.number for access in found], np.int64),
            repeated([access.write for access in found], np.bool_),
            repeated([access.width for access in found], np.int64),
            joined([access.address for access in found]),
            joined([access.warp for access in found]),
            joined([access.epoch for access in found]),
            repeated(list(range(len(found))), np.int64),
        )

    def __len__(self) -> int:
        return len(self.address)

    def take(self, index: np.ndarray) -> "Accesses":
        return Accesses(*(getattr(self, field.name)[index] for field in fields(self)))

    def by_bytes(self) -> "Accesses":
        """One row per byte."""
        row = np.repeat(np.arange(len(self)), self.width)
        first = np.cumsum(self.width) - self.width
        each = self.take(row)
        each.address = each.address + np.arange(len(row)) - first[row]
        return each

    @property
    def region(self) -> np.ndarray:
        """Index of each address's region in the global memory."""
        return (self.address >> REGION_BITS) - 1


def groups(*keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order, begins): the order that sorts rows by the keys, and where in it each group of equal keys begins."""
    order = np.lexsort(keys[::-1])
    new = np.zeros(len(order), bool)
    new[:1] = True
    for key in keys:
        new[1:] |= np.diff(key[order]) != 0
    return order, np.flatnonzero(new)
