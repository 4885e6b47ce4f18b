"""Runs some CTAs of a launch, all lanes in lockstep: blocks in the order of the code, so lanes that part meet again.

A lane that reaches a barrier waits until all lanes of its CTA do.
"""

from typing import Any

import numpy as np

from tests.ptx.approximate import Nearest
from tests.ptx.lanes import WARP, Lanes
from tests.ptx.memory import GlobalMemory, SharedMemory
from tests.ptx.record import Record
from tests.ptx.translate import Program
from tests.ptx.writer import NUMPY, held_as

Pending = dict[int, list[np.ndarray]]
"""Lanes that are about to run a block, by the block's index."""


class Machine(Lanes):
    """Some CTAs of a launch.

    Args:
        parameters: of the kernel, 8 bytes each.
        approximate: rounding of what the manual calls approximate.
        random: runs the warps in random order; None runs them in lockstep.

    The other arguments are those of :class:`Lanes`.
    """

    def __init__(
        self,
        program: Program,
        parameters: np.ndarray,
        ctas: np.ndarray,
        grid: tuple[int, int, int],
        memory: GlobalMemory,
        record: Record,
        approximate: Nearest,
        random: np.random.Generator | None = None,
        suspected: dict[int, np.ndarray] | None = None,
    ):
        super().__init__(program, ctas, grid, record, suspected or {})
        self.parameters, self.approximate, self.random = parameters, approximate, random
        self.global_memory, self.shared_memory = memory, SharedMemory(len(ctas), program.shared_bytes)
        self._registers: dict[str, np.ndarray] = {}
        self._undef: dict[str, np.ndarray] = {}
        self._ended = np.zeros(len(ctas), np.int64)  # lanes of each CTA
        self._garbage = np.random.default_rng(1)

    def run(self) -> None:
        """Run all lanes to their end.

        Raises:
            UnknownInstruction: an instruction that is not emulated.
        """
        pending: Pending = {0: [np.arange(self.num_lanes)]}
        waiting: list[tuple[int, np.ndarray]] = []
        with np.errstate(all="ignore"):
            while pending or waiting:
                if pending:
                    self._step(pending, waiting)
                else:
                    self._release(waiting, pending)

    def _step(self, pending: Pending, waiting: list[tuple[int, np.ndarray]]) -> None:
        """Run one block in the lanes that are there, and send them on."""
        index = min(pending) if self.random is None else int(self.random.choice(list(pending)))
        parts = pending.pop(index)
        lanes = parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))
        if self.random is not None:
            lanes = self._half_of_the_warps(self.random, lanes, index, pending)
        block = self.program.kernel.blocks[index]
        taken = self._execute(index, lanes)
        match block.last.name:
            case "bra":
                taken = np.ones(len(lanes), bool) if taken is None else taken
                for following, going in ((block.target, lanes[taken]), (index + 1, lanes[~taken])):
                    if len(going):
                        pending.setdefault(following, []).append(going)
            case "ret" | "exit":
                np.add.at(self._ended, self.all_cta[lanes], 1)
            case "bar" | "barrier" if block.last.opcode != "bar.warp.sync":
                waiting.append((index + 1, lanes))
            case _:
                pending.setdefault(index + 1, []).append(lanes)

    def _half_of_the_warps(
        self, random: np.random.Generator, lanes: np.ndarray, index: int, pending: Pending
    ) -> np.ndarray:
        """Lanes of some warps that could run; the others stay pending."""
        warps = np.unique(lanes // WARP)
        if len(warps) == 1:
            return lanes
        chosen = np.isin(lanes // WARP, random.choice(warps, len(warps) // 2, replace=False))
        pending.setdefault(index, []).append(lanes[~chosen])
        return lanes[chosen]

    def _release(self, waiting: list[tuple[int, np.ndarray]], pending: Pending) -> None:
        """Let all CTAs pass their barrier: nothing else can run."""
        arrived, barrier = np.zeros(len(self.epoch), np.int64), np.full(len(self.epoch), -1)
        for following, lanes in waiting:
            cta = self.all_cta[lanes]
            np.add.at(arrived, cta, 1)
            if ((barrier[cta] >= 0) & (barrier[cta] != following)).any():
                self._find_at_barrier(following, "warps of a CTA wait at different barriers")
            barrier[cta] = following
        there = arrived > 0
        if (there & (self._ended > 0)).any():
            self._find_at_barrier(waiting[0][0], "some threads of the CTA have ended already")
        self.epoch[there] += 1
        for following, lanes in waiting:
            pending.setdefault(following, []).append(lanes)
        waiting.clear()

    def _find_at_barrier(self, following: int, detail: str) -> None:
        last = self.program.kernel.blocks[following - 1].last
        number = next(n for n, instruction in enumerate(self.program.instructions) if instruction is last)
        self.find("barrier", number, detail)

    # Registers

    def _execute(self, index: int, lanes: np.ndarray) -> Any:
        """Run a block; the lanes in which its branch is taken, None for all."""
        block = self.program.kernel.blocks[index]
        self.activate(lanes)
        warps = np.count_nonzero(np.diff(lanes // WARP)) + 1
        self.record.warps_of_block[index] = self.record.warps_of_block.get(index, 0) + warps
        for name in block.live_in:
            self._make(name)
        if len(lanes) == self.num_lanes:
            taken = self.program.functions[index](self._registers, self._undef, self)
            for name in block.live_out:
                if self._undef.get(name, 0) is None:
                    del self._undef[name]
            return taken
        registers = {name: self._registers[name][lanes] for name in block.live_in}
        undef = {name: self._undef[name][lanes] for name in block.live_in if name in self._undef}
        taken = self.program.functions[index](registers, undef, self)
        for name in block.live_out:
            self._make(name)
            self._merge(name, lanes, registers[name], undef.get(name))
        return taken

    def _merge(self, name: str, lanes: np.ndarray, values: np.ndarray, undef: np.ndarray | None) -> None:
        """Write a register in the active lanes."""
        merged = self._registers[name].copy()
        merged[lanes] = values
        self._registers[name] = merged
        if name not in self._undef and undef is None:
            return
        joined = self._undef[name].copy() if name in self._undef else np.zeros(self.num_lanes, bool)
        joined[lanes] = False if undef is None else undef
        if joined.any():
            self._undef[name] = joined
        else:
            self._undef.pop(name, None)

    def _make(self, name: str) -> None:
        """Fill a register that nobody has written with garbage, undefined in all lanes."""
        if name in self._registers:
            return
        dtype = NUMPY[held_as(name)]
        high = 1 if dtype is np.bool_ else np.iinfo(dtype).max
        self._registers[name] = self._garbage.integers(0, high, self.num_lanes, dtype=dtype, endpoint=True)
        self._undef[name] = np.ones(self.num_lanes, bool)
