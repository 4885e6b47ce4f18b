"""Loads and stores of many lanes, checked: bounds, alignment, undefined addresses and undefined values."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tests.ptx.lanes import Lanes
from tests.ptx.record import Access
from tests.ptx.views import REGION_BITS, UNSIGNED, Region, View


def taking_part(m: Lanes, number: int, address: Any, mask: Any, undef: Any) -> tuple[Any, Any]:
    """(indices of the lanes that the mask lets through, None for all of them; their addresses)."""
    m.check_defined(number, "address", undef, mask)
    if mask is None or mask.all():
        return None, address
    lanes = np.flatnonzero(mask)
    return lanes, address[lanes]


def picked(values: Any, lanes: Any) -> Any:
    return values if lanes is None else values[..., lanes]


def spread(m: Lanes, values: Any, lanes: Any) -> Any:
    """Zeros in the lanes that took no part."""
    if lanes is None:
        return values
    out = np.zeros((len(values), m.n), values.dtype)
    out[:, lanes] = values
    return out


def note(m: Lanes, number: int, space: str, write: bool, width: int, address: Any, lanes: Any) -> None:
    epoch = m.epoch[picked(m.cta, lanes)]
    m.record.accesses.append(Access(number, space, write, width, address, picked(m.warp, lanes), epoch))


class GlobalMemory:
    """The storages of a launch's tensors."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self._of_storage: dict[tuple[int, int], Region] = {}
        self._journal: list[tuple[Region, np.ndarray, np.ndarray, int]] = []

    def address(self, tensor: Tensor, name: str) -> int:
        """The virtual address of a tensor, which becomes part of this memory."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr(), storage.nbytes()
        if key not in self._of_storage:
            base = ((len(self.regions) + 1) << REGION_BITS) + key[0] % (1 << 20)
            self._of_storage[key] = Region(base, *key, storage)
            self.regions.append(self._of_storage[key])
        region = self._of_storage[key]
        if tensor.numel():
            region.views.append(View.of(name, tensor))
        return region.base + int(tensor.storage_offset()) * tensor.element_size()

    def region_at(self, address: int) -> Region | None:
        index = (int(address) >> REGION_BITS) - 1
        return self.regions[index] if 0 <= index < len(self.regions) else None

    def undo(self) -> None:
        """Take back all stores since the last time."""
        while self._journal:
            region, offsets, values, size = self._journal.pop()
            region.store(offsets, values, size)

    def load(
        self, m: Lanes, number: int, address: Any, size: int, count: int, mask: Any, undef: Any
    ) -> tuple[Any, np.ndarray | None]:
        """(values [count, lanes], lanes whose value is suspected)."""
        lanes, address = taking_part(m, number, address, mask, undef)
        out = np.zeros((count, len(address)), UNSIGNED[size])
        for region, here, offsets in self._reach(m, number, address, size * count):
            out[:, here] = region.load(offsets, size, count)
        if len(address):
            note(m, number, "global", False, size * count, address, lanes)
        suspect = np.isin(m.warp, m.suspected[number]) if number in m.suspected else None
        return spread(m, out, lanes), suspect

    def store(
        self, m: Lanes, number: int, address: Any, size: int, values: Sequence[Any], mask: Any, undef: Any, stored: Any
    ) -> None:
        """Store values per element of the access; ``undef`` of the address, ``stored`` of the values."""
        m.check_defined(number, "stored value", stored, mask)
        lanes, address = taking_part(m, number, address, mask, undef)
        if not len(address):
            return
        written = picked(np.stack(values), lanes)
        for region, here, offsets in self._reach(m, number, address, size * len(values)):
            self._journal.append((region, offsets, region.load(offsets, size, len(values)), size))
            region.store(offsets, written[:, here], size)
        note(m, number, "global", True, size * len(values), address, lanes)

    def _reach(
        self, m: Lanes, number: int, address: np.ndarray, width: int
    ) -> Iterator[tuple[Region, np.ndarray, np.ndarray]]:
        """Per region (region, lanes whose whole access lies in it, their offsets); the others are findings."""
        index = address >> np.uint64(REGION_BITS)
        for one in [index[0]] if len(index) and (index == index[0]).all() else np.unique(index):
            lanes = np.flatnonzero(index == one)
            region = self.region_at(address[lanes[0]])
            if region is None:
                m.find("out of bounds", number, f"{len(lanes)} lanes, in no tensor's memory")
                continue
            offsets = address[lanes].astype(np.int64) - region.base
            if (address[lanes] & np.uint64(width - 1)).any():
                m.find("misaligned", number, f"{width} bytes, at {int(offsets[0])} of {region.name}")
            legal = (offsets >= 0) & (offsets <= region.nbytes - width)
            if not legal.all():
                wrong = offsets[~legal]
                where = f"first at {int(wrong[0])} of the {region.nbytes} bytes of {region.name}"
                m.find("out of bounds", number, f"{len(wrong)} lanes, {where}")
                lanes, offsets = lanes[legal], offsets[legal]
            if len(lanes):
                yield region, lanes, offsets


class SharedMemory:
    """The shared memory of several CTAs, and which bytes of it are undefined."""

    def __init__(self, ctas: int, nbytes: int):
        self.bytes = np.zeros((ctas, max(16, nbytes)), np.uint8)
        self.undefined = np.ones(self.bytes.shape, bool)

    def load(
        self, m: Lanes, number: int, address: Any, size: int, count: int, mask: Any, undef: Any
    ) -> tuple[Any, np.ndarray | None]:
        """(values [count, lanes], lanes whose value is undefined)."""
        lanes, address = taking_part(m, number, address, mask, undef)
        at = self._bytes(m, number, address, size * count, lanes)
        values = np.ascontiguousarray(self.bytes[at].view(UNSIGNED[size]).reshape(len(address), count).T)
        unknown: Any = self.undefined[at].any(1)
        if number in m.suspected:
            unknown |= np.isin(picked(m.warp, lanes), m.suspected[number])
        note(m, number, "shared", False, size * count, address.astype(np.uint64), lanes)
        return spread(m, values, lanes), spread(m, np.array([unknown]), lanes)[0] if unknown.any() else None

    def store(
        self, m: Lanes, number: int, address: Any, size: int, values: Sequence[Any], mask: Any, undef: Any, stored: Any
    ) -> None:
        lanes, address = taking_part(m, number, address, mask, undef)
        if not len(address):
            return
        written = picked(np.stack(values), lanes)
        at = self._bytes(m, number, address, size * len(values), lanes)
        self.bytes[at] = np.ascontiguousarray(written.T).view(np.uint8).reshape(len(address), -1)
        self.undefined[at] = False if stored is None else picked(stored, lanes)[:, None]
        note(m, number, "shared", True, size * len(values), address.astype(np.uint64), lanes)

    def _bytes(self, m: Lanes, number: int, address: Any, width: int, lanes: Any) -> tuple[Any, Any]:
        """Indices of the bytes of each lane's access."""
        address = address.astype(np.int64)
        wrong = (address < 0) | (address + width > self.bytes.shape[1])
        if wrong.any():
            where = f"{int(address[wrong][0])} of the {self.bytes.shape[1]} bytes of shared memory"
            m.find("out of bounds", number, f"{int(wrong.sum())} lanes, first at {where}")
            address = np.where(wrong, 0, address)
        if (address % width).any():
            m.find("misaligned", number, f"{width} bytes of shared memory")
        return picked(m.cta, lanes)[:, None], address[:, None] + np.arange(width)
