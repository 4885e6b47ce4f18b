"""Counts of a launch: sectors that move between an SM and memory, and instructions that its warps execute."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from tests.ptx.memory import GlobalMemory
from tests.ptx.record import Record
from tests.ptx.table import Accesses, groups
from tests.ptx.translate import Program

SECTOR = 32  # bytes


@dataclass
class Traffic:
    """Of one launch, one storage and one direction.

    Attributes:
        name: of the storage's tensors.
        write: stores.
        requests: instructions of warps.
        sectors: that they ask for, each as often as it is asked for.
        distinct: each sector once.
        nbytes: that lanes ask for.
    """

    name: str
    write: bool
    requests: int
    sectors: int
    distinct: int
    nbytes: int


def traffic(record: Record, memory: GlobalMemory) -> list[Traffic]:
    table = Accesses.of(access for access in record.accesses if access.space == "global")
    out = []
    for index, region in enumerate(memory.regions):
        for write in (False, True):
            here = table.take(np.flatnonzero((table.region == index) & (table.write == write)))
            if len(here):
                sector = here.address // SECTOR  # an aligned access of at most 32 bytes lies in one
                requests = len(groups(here.request, here.warp)[1])
                sectors = len(groups(here.request, here.warp, sector)[1])
                out.append(
                    Traffic(region.name, write, requests, sectors, len(np.unique(sector)), int(here.width.sum()))
                )
    return out


def instructions(program: Program, record: Record) -> Counter[str]:
    """Instructions of warps by name; guarded ones count even where no lane runs them."""
    counts: Counter[str] = Counter()
    for block in program.kernel.blocks:
        for instruction in block.instructions:
            counts[instruction.name] += record.warps_of_block.get(block.index, 0)
    return counts
