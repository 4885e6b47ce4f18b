"""Races: two warps, one byte, a store among them, and no barrier between. Between CTAs no barrier helps.

Within a warp none is looked for. Its lanes are in lockstep here, and of two that store to one byte the higher one wins;
PTX promises neither. So a kernel whose lanes meet in memory without ``bar.warp.sync`` is not found out.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from tests.ptx.findings import Finding
from tests.ptx.record import Record
from tests.ptx.table import Accesses, groups
from tests.ptx.translate import Program


@dataclass
class Race:
    """Two instructions whose order nothing decides.

    Attributes:
        finding: what to report.
        reads: by number of a load, the warps whose value the order decides; empty where both store.
    """

    finding: Finding
    reads: dict[int, np.ndarray] = field(default_factory=dict)


def races(program: Program, record: Record) -> list[Race]:
    found: list[Race] = []
    for space in ("shared", "global"):
        table = Accesses.of(access for access in record.accesses if access.space == space)
        if not table.write.any():
            continue
        if space == "shared":  # each CTA has its own
            table.address += table.warp // program.warps << 32
        table = table.take(contended(table.write, table.warp, table.address >> 4)).by_bytes()
        cta = table.warp // program.warps
        found += races_between(program, table, space, "warps of a CTA", table.warp, (table.address, cta, table.epoch))
        if space == "global":
            found += races_between(program, table, space, "CTAs", cta, (table.address,))
    return found


def contended(write: np.ndarray, actor: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Rows, sorted by the keys, of groups with a store and more than one actor."""
    if not len(write):
        return np.empty(0, np.int64)
    order, begins = groups(*keys)
    most, least = np.maximum.reduceat(actor[order], begins), np.minimum.reduceat(actor[order], begins)
    bad = np.logical_or.reduceat(write[order], begins) & (most != least)
    return order[np.repeat(bad, np.diff([*begins, len(order)]))]


def races_between(
    program: Program, table: Accesses, space: str, who: str, actor: np.ndarray, keys: tuple[np.ndarray, ...]
) -> list[Race]:
    """Races of different actors in rows with equal keys."""
    rows = contended(table.write, actor, *keys)
    warps: dict[tuple[int, int, bool], set[int]] = {}  # by the storing instruction, the other, and whether it stores
    order, begins = groups(*(key[rows] for key in keys)) if len(rows) else (rows, rows)
    for begin, end in pairwise([*begins, len(order)]):
        here = rows[order[begin:end]]
        for writer in here[table.write[here]][:4]:
            for other in here[actor[here] != actor[writer]]:
                pair = int(table.number[writer]), int(table.number[other]), bool(table.write[other])
                warps.setdefault(pair, set()).add(int(table.warp[other]))
    found = []
    for (writer, other, stores), of_other in sorted(warps.items()):
        deed = f"{space} memory stored and {'stored' if stores else 'loaded'} by two {who} without a barrier between"
        place, second = program.instructions[writer].place, program.instructions[other].place
        finding = Finding("race", program.kernel.name, place, f"{deed}: {second}")
        found.append(Race(finding, {} if stores else {other: np.array(sorted(of_other))}))
    return found
