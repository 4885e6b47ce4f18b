"""Lanes of some CTAs that run in lockstep: who they are, which of them are active, and what they have found."""

from typing import Any

import numpy as np

from tests.ptx.findings import Finding, UnknownInstruction
from tests.ptx.record import Record
from tests.ptx.translate import Program

WARP = 32


class Lanes:
    """All threads of some CTAs; the functions of a block see the active ones.

    Args:
        ctas: their indices in the grid, counted x first.
        grid: CTAs in x, y and z.
        suspected: by number of a load, the warps whose loaded value is followed as undefined.
    """

    def __init__(
        self,
        program: Program,
        ctas: np.ndarray,
        grid: tuple[int, int, int],
        record: Record,
        suspected: dict[int, np.ndarray],
    ):
        self.program, self.grid, self.record, self.suspected = program, grid, record, suspected
        threads = program.kernel.threads
        self.num_lanes = threads * len(ctas)
        self.epoch = np.zeros(len(ctas), np.int32)
        self.all_tid = np.tile(np.arange(threads, dtype=np.uint32), len(ctas))
        self.all_cta = np.repeat(np.arange(len(ctas)), threads)
        self.all_ctaid = np.repeat(ctas.astype(np.uint32), threads)
        self.all_warp = (self.all_ctaid.astype(np.int64) * program.warps + self.all_tid // WARP).astype(np.int32)
        self._reported: set[tuple[str, int]] = set()
        self.activate(np.arange(self.num_lanes))

    def activate(self, lanes: np.ndarray) -> None:
        self.active, self.n = lanes, len(lanes)
        self.tid, self.cta, self.warp = self.all_tid[lanes], self.all_cta[lanes], self.all_warp[lanes]
        self._whole_warps: bool | None = None

    # As the functions of a block see them

    @property
    def laneid(self) -> np.ndarray:
        return self.tid % np.uint32(WARP)

    @property
    def ntid(self) -> np.ndarray:
        return self.full(np.uint32(self.program.kernel.threads))

    def ctaid(self, axis: int) -> np.ndarray:
        x, y, _ = self.grid
        return self.all_ctaid[self.active] // np.uint32((1, x, x * y)[axis]) % np.uint32(self.grid[axis])

    def nctaid(self, axis: int) -> np.ndarray:
        return self.full(np.uint32(self.grid[axis]))

    def full(self, scalar: Any) -> np.ndarray:
        return np.full(self.n, scalar)

    # Findings

    def find(self, kind: str, number: int, detail: str) -> None:
        """Report a hazard once per instruction."""
        if (kind, number) not in self._reported:
            self._reported.add((kind, number))
            place = self.program.instructions[number].place
            self.record.findings.append(Finding(kind, self.program.kernel.name, place, detail))

    def check_defined(self, number: int, what: str, undef: Any, mask: Any = None) -> None:
        """Report undefined lanes among those that take part."""
        if undef is None:
            return
        at = np.flatnonzero(undef if mask is None else undef & mask)
        if len(at):
            first = f"first CTA {self.all_ctaid[self.active[at[0]]]} thread {self.tid[at[0]]}"
            self.find("undefined", number, f"{what} of {len(at)} lanes, {first}")

    # Warps

    def check_whole_warps(self, number: int) -> None:
        if self._whole_warps is None:
            grouped = self.active.reshape(-1, WARP) if self.n % WARP == 0 else None
            self._whole_warps = grouped is not None and bool(
                (grouped[:, 0] % WARP == 0).all() and (grouped[:, -1] == grouped[:, 0] + WARP - 1).all()
            )
        if not self._whole_warps:
            self.find("shuffle", number, "some lanes of a warp are not there")
            raise UnknownInstruction(f"{self.program.instructions[number].place}: among part of a warp")

    def shuffle(self, number: int, mode: str, value: Any, undef: Any, by: Any) -> tuple[Any, Any]:
        """(values, undefined lanes) of the lane ``by`` (idx), or of the lane whose number differs by it (bfly)."""
        self.check_whole_warps(number)
        by = by.reshape(-1, WARP).astype(np.int64)
        source = np.arange(WARP) ^ by if mode == "bfly" else by % WARP
        return gathered(value, source), None if undef is None else gathered(undef, source)

    def reduce(self, number: int, function: Any, value: Any, undef: Any, members: Any) -> tuple[Any, Any]:
        self.check_whole_warps(number)
        if not (np.asarray(members) == 0xFFFFFFFF).all():
            raise UnknownInstruction(f"{self.program.instructions[number].place}: among part of a warp")
        total = np.repeat(function.reduce(value.reshape(-1, WARP), axis=1, dtype=value.dtype), WARP)
        return total, None if undef is None else np.repeat(undef.reshape(-1, WARP).any(1), WARP)


def gathered(x: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Each lane's value is that of lane ``source`` of its warp."""
    return np.take_along_axis(x.reshape(-1, WARP), source, 1).reshape(-1)
