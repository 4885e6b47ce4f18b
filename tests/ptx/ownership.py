"""Every access lies in one row of one of the tensors that were passed, and a CTA keeps to its share of the rows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.ptx.findings import Finding
from tests.ptx.memory import GlobalMemory
from tests.ptx.record import Record
from tests.ptx.table import Accesses
from tests.ptx.translate import Program
from tests.ptx.views import Region


@dataclass
class RowUse:
    """Of one tensor.

    Attributes:
        name: of the parameter.
        rows: how many it has.
        most_per_cta: how many of them a CTA touches at most.
    """

    name: str
    rows: int
    most_per_cta: int


def ownership(program: Program, record: Record, memory: GlobalMemory) -> tuple[list[Finding], list[RowUse]]:
    """(accesses outside the tensors' rows, use of the rows of those that have several)."""
    table = Accesses.of(access for access in record.accesses if access.space == "global")
    found: list[Finding] = []
    use: list[RowUse] = []
    for index, region in enumerate(memory.regions):
        here = table.take(np.flatnonzero(table.region == index))
        if not len(here):
            continue
        offsets = here.address - region.base
        legal, straddles = np.zeros((2, len(here)), bool)
        for view in dict.fromkeys(region.views):
            row, inside = view.rows(offsets, here.width)
            straddles |= view.rows(offsets, np.minimum(here.width, view.itemsize))[1] & ~inside
            new = inside & ~legal
            legal |= inside
            if new.any() and view.num_rows > 1:
                pairs = np.unique(here.warp[new] // program.warps * view.num_rows + row[new])  # of a CTA and a row
                most = int(np.unique(pairs // view.num_rows, return_counts=True)[1].max())
                use.append(RowUse(view.name, view.num_rows, most))
        found += _outside(program, here, region, "straddles rows", straddles & ~legal)
        found += _outside(program, here, region, "outside the view", ~legal & ~straddles)
    return found, use


def _outside(program: Program, table: Accesses, region: Region, kind: str, wrong: np.ndarray) -> list[Finding]:
    found = []
    for number in np.unique(table.number[wrong]):
        at = np.flatnonzero(wrong & (table.number == number))
        first = f"first {int(table.width[at[0]])} bytes at {int(table.address[at[0]] - region.base)} of {region.name}"
        place = program.instructions[number].place
        found.append(Finding(kind, program.kernel.name, place, f"{len(at)} accesses, {first}"))
    return found


def beyond_share(program: Program, use: list[RowUse], ctas: int, owned: Callable[[str], bool]) -> list[Finding]:
    """CTAs that touch more rows of a tensor than fall to each.

    Args:
        owned: whether the rows of a tensor, by its name, are shared out among CTAs.
    """
    return [
        Finding(
            "rows of others",
            program.kernel.name,
            "any line",
            f"a CTA touches {one.most_per_cta} of {one.rows} rows of {one.name}; grid of {ctas}",
        )
        for one in use
        if owned(one.name) and one.most_per_cta > -(-one.rows // ctas)
    ]
