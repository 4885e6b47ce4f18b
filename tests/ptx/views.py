"""Tensors of a launch as regions of virtual memory: each storage lies terabytes from the next.

So an address beyond its tensor's storage falls into nothing, whatever the host has there. Addresses keep the alignment
that they have on the host, up to 1 MiB.
"""

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

REGION_BITS = 41
UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class View:
    """One tensor as it was passed: a launch may touch its elements, and nothing between its rows.

    Attributes:
        name: of the parameter.
        offset: bytes from the region's begin.
        itemsize: bytes.
        outer: (size, stride in bytes) of the other dimensions, longest stride first; without sizes of 1 and strides 0.
        row_bytes: of a row: what is contiguous at the end of the shape.
    """

    name: str
    offset: int
    itemsize: int
    outer: tuple[tuple[int, int], ...]
    row_bytes: int

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "View":
        size = tensor.element_size()
        dims = [(n, stride * size) for n, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        contiguous = bool(dims) and (dims[-1][0] == 1 or dims[-1][1] == size)
        row_bytes = dims.pop()[0] * size if contiguous else size
        outer = sorted(((n, stride) for n, stride in dims if n > 1 and stride), key=lambda dim: -dim[1])
        return cls(name, tensor.storage_offset() * size, size, tuple(outer), row_bytes)

    def rows(self, offsets: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row, whether all ``width`` bytes at the offset lie in it)."""
        rest = offsets - self.offset
        row = np.zeros(offsets.shape, np.int64)
        legal = rest >= 0
        for size, stride in self.outer:
            index = np.clip(rest // stride, 0, size - 1)
            rest = rest - index * stride
            row = row * size + index
        return row, legal & (rest >= 0) & (rest + width <= self.row_bytes)

    @property
    def num_rows(self) -> int:
        return int(np.prod([size for size, _ in self.outer], dtype=np.int64))


@dataclass
class Region:
    """One storage.

    Attributes:
        base: its virtual address.
        pointer: its address on the host.
        nbytes: its size.
        storage: keeps it alive.
        views: tensors in it that were passed.
    """

    base: int
    pointer: int
    nbytes: int
    storage: Any
    views: list[View] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bytes = np.empty(0, np.uint8)
        if self.nbytes:
            self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * self.nbytes).from_address(self.pointer))
        self._tables: dict[tuple[int, int], np.ndarray] = {}

    @property
    def name(self) -> str:
        return "|".join(dict.fromkeys(view.name for view in self.views))

    def load(self, offsets: np.ndarray, size: int, count: int) -> np.ndarray:
        """[count, lanes] of ``size`` bytes each."""
        table = self._table(offsets, size, count)
        if table is not None:
            return np.ascontiguousarray(table[offsets // (size * count)].T)
        raw = self.bytes[offsets[:, None] + np.arange(size * count)]
        return np.ascontiguousarray(raw.view(UNSIGNED[size]).reshape(len(offsets), count).T)

    def store(self, offsets: np.ndarray, values: np.ndarray, size: int) -> None:
        """``values``: [count, lanes]. Where lanes store to one address, the last one wins."""
        count = len(values)
        table = self._table(offsets, size, count)
        if table is not None:
            table[offsets // (size * count)] = values.T
            return
        raw = np.ascontiguousarray(values.T).view(np.uint8).reshape(len(offsets), -1)
        self.bytes[offsets[:, None] + np.arange(size * count)] = raw

    def _table(self, offsets: np.ndarray, size: int, count: int) -> np.ndarray | None:
        """[n, count]: the storage as aligned accesses, which numpy indexes faster; None where one is not aligned."""
        width = size * count
        if self.pointer % width or (offsets % width).any():
            return None
        if (size, count) not in self._tables:
            whole = self.bytes[: self.nbytes // width * width]
            self._tables[(size, count)] = whole.view(UNSIGNED[size]).reshape(-1, count)
        return self._tables[(size, count)]
