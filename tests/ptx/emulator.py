"""Launches compiled kernels on tensors of the host, and checks each launch."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.ptx.approximate import Adverse, Nearest
from tests.ptx.counts import Traffic, traffic
from tests.ptx.findings import EmulationError, Finding, UnknownInstruction
from tests.ptx.machine import Machine
from tests.ptx.memory import GlobalMemory
from tests.ptx.ownership import beyond_share, ownership
from tests.ptx.parse import parse
from tests.ptx.races import Race, races
from tests.ptx.record import Record
from tests.ptx.translate import Program

CTAS_AT_ONCE = 64  # of a launch: more lanes per call of numpy, in memory that a test can have
ENCODINGS = {"fp32": "<f", "fp64": "<d"}


@dataclass
class Launch:
    """What one launch did.

    Attributes:
        program: what ran.
        ctas: of the grid.
        record: accesses, findings, and how often each block ran.
        memory: the tensors.
    """

    program: Program = field(repr=False)
    ctas: int
    record: Record = field(repr=False)
    memory: GlobalMemory = field(repr=False)

    def traffic(self) -> list[Traffic]:
        return traffic(self.record, self.memory)


@dataclass
class Emulator:
    """A GPU in numpy.

    Attributes:
        arch: compute capability, 90 for an H100.
        approx_seed: moves what the PTX manual calls approximate by as much as it permits; None rounds to nearest.
        schedule_seed: runs warps in random order; None in lockstep.
        mutate: (name, PTX of a kernel) -> PTX, before it is read.
        owned: whether the rows of a tensor, by the parameter's name, are shared out among CTAs.
        on_launch: receives each launch.
        findings: of all launches, and what could not run.
    """

    arch: int = 90
    approx_seed: int | None = None
    schedule_seed: int | None = None
    mutate: Callable[[str, str], str] | None = None
    owned: Callable[[str], bool] = lambda name: "logits" in name
    on_launch: Callable[[Launch], None] = lambda launch: None
    findings: list[Finding | UnknownInstruction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.approximate = Nearest() if self.approx_seed is None else Adverse(self.approx_seed)
        self.random = None if self.schedule_seed is None else np.random.default_rng(self.schedule_seed)
        self.programs: dict[tuple[str, int], Program] = {}

    def program(self, name: str, ptx: str, shared_bytes: int) -> Program:
        """Read and translate a kernel once.

        Raises:
            UnknownInstruction: which instruction of which kernel is not emulated.
        """
        if self.mutate is not None:
            ptx = self.mutate(name, ptx)
        if (ptx, shared_bytes) not in self.programs:
            try:
                kernel = parse(ptx)
                self.programs[ptx, shared_bytes] = Program(kernel, max(shared_bytes, kernel.static_shared))
            except UnknownInstruction as error:
                unknown = UnknownInstruction(f"{name} was not run for sm_{self.arch}: {error}")
                self.findings.append(unknown)
                raise unknown from None
        return self.programs[ptx, shared_bytes]

    def launch(self, program: Program, grid: tuple[int, int, int], arguments: Sequence[tuple[str, str, Any]]) -> Launch:
        """Run a grid to its end.

        Args:
            arguments: (name, type, value) of each parameter; a pointer's type begins with "*", its value is a tensor.

        Raises:
            EmulationError: something was found.
            UnknownInstruction: as for :meth:`program`.
        """
        memory, record = GlobalMemory(), Record()
        values = [
            memory.address(value, name) if kind.startswith("*") else bits(value, kind)
            for name, kind, value in arguments
        ]
        values += [0] * (len(program.kernel.parameters) - len(values))  # scratch memory that no kernel here asks for
        parameters = np.array(values, np.uint64)
        try:
            self._run(program, parameters, grid, memory, record)
        except UnknownInstruction as error:
            unknown = UnknownInstruction(f"{program.kernel.name} did not end for sm_{self.arch}: {error}")
            self.findings += [*record.findings, unknown]
            raise unknown from None
        outside, use = ownership(program, record, memory)
        ctas = grid[0] * grid[1] * grid[2]
        record.findings += outside + beyond_share(program, use, ctas, self.owned)
        found = races(program, record)
        while found and self._is_harmless(program, parameters, grid, memory, found[0]):
            record.harmless.append(found.pop(0).finding)
        record.findings += [race.finding for race in found]
        launch = Launch(program, ctas, record, memory)
        self.on_launch(launch)
        if record.findings:
            self.findings += record.findings
            raise EmulationError(record.findings)
        return launch

    def _run(
        self,
        program: Program,
        parameters: np.ndarray,
        grid: tuple[int, int, int],
        memory: GlobalMemory,
        record: Record,
        suspected: dict[int, np.ndarray] | None = None,
    ) -> None:
        random = self.random if suspected is None else None
        count = grid[0] * grid[1] * grid[2]
        for first in range(0, count, CTAS_AT_ONCE):
            ctas = np.arange(first, min(count, first + CTAS_AT_ONCE))
            Machine(program, parameters, ctas, grid, memory, record, self.approximate, random, suspected).run()

    def _is_harmless(
        self, program: Program, parameters: np.ndarray, grid: tuple[int, int, int], memory: GlobalMemory, race: Race
    ) -> bool:
        """Launch again with the raced load's values followed as undefined: nothing may depend on them."""
        if not race.reads:
            return False
        record = Record()
        memory.undo()
        suspicious = Program(program.kernel, program.shared_bytes, frozenset(race.reads))
        self._run(suspicious, parameters, grid, memory, record, race.reads)
        return not any(finding.kind == "undefined" for finding in record.findings)


def bits(value: Any, kind: str) -> int:
    """An argument's bits."""
    if kind in ENCODINGS:
        return int.from_bytes(struct.pack(ENCODINGS[kind], value), "little")
    return int(value) & (2**64 - 1)
