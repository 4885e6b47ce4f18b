"""A kernel's machine code on any machine: its instructions by kind, its loops, its resources."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from re import Pattern

from benchmarks.static.control_flow import Flow
from benchmarks.static.source_lines import Location, SourceLoop, source_loop


class Kind(Enum):
    LOAD = "load from global memory"
    STORE = "store to global memory"
    EXP = "exp unit"
    SHUFFLE = "shuffle"
    BARRIER = "barrier"
    OTHER = "other"


@dataclass(frozen=True)
class Instruction:
    kind: Kind
    bits: int  # that a load or store moves, per thread
    written: frozenset[int]  # registers that a load fills
    touched: frozenset[int]  # registers that it names
    location: Location


Read = tuple[Instruction, str, bool]
"""An instruction, the label that it may jump to ("" for none), and whether the next one may follow it."""


def assemble(
    lines: Iterable[tuple[str, Location]], label: Pattern[str], read: Callable[[str, Location], Read | None]
) -> tuple[tuple[Instruction, ...], Flow]:
    """The instructions of a listing, from its lines beside their locations; ``read`` gives None of any other line."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    stops = set()
    for line, location in lines:
        if match := label.match(line):
            labels[match[1]] = len(instructions)
        elif found := read(line, location):
            instruction, target, goes_on = found
            if target:
                jumps.append((len(instructions), target))
            if not goes_on:
                stops.add(len(instructions))
            instructions.append(instruction)
    targets = tuple((origin, labels[target]) for origin, target in jumps)
    return tuple(instructions), Flow(len(instructions), targets, frozenset(stops))


@dataclass(frozen=True)
class Loop:
    """One loop of the machine code and the loop of the source that most of its instructions come from."""

    body: tuple[Instruction, ...] = field(repr=False)
    source: SourceLoop | None

    def count(self, kind: Kind) -> int:
        return sum(instruction.kind is kind for instruction in self.body)

    def bits(self, kind: Kind) -> int:
        """That a thread moves in one iteration."""
        return sum(instruction.bits for instruction in self.body if instruction.kind is kind)

    def widths(self, kind: Kind) -> tuple[int, ...]:
        """Bits of its accesses, each width once."""
        return tuple(sorted({instruction.bits for instruction in self.body if instruction.kind is kind}))

    def bits_in_flight(self) -> int:
        """That a thread has asked for and not yet waited for, at most: a load is waited for where its registers are
        next named. Two rounds, because a load may be waited for in the iteration after its own."""
        pending: list[Instruction] = []
        most = 0
        for instruction in self.body * 2:
            pending = [load for load in pending if not load.written & instruction.touched]
            if instruction.kind is Kind.LOAD:
                pending.append(instruction)
            most = max(most, sum(load.bits for load in pending))
        return most


@dataclass(frozen=True)
class MachineCode:
    """Of one kernel."""

    instructions: tuple[Instruction, ...]
    flow: Flow
    registers: int  # per thread
    spills: int  # bytes of memory per thread
    shared: int  # bytes of shared memory per program

    def loops(self) -> list[Loop]:
        """The innermost loops that touch global memory, as the source is read.

        Where the compiler made several of one source loop (unrolled, and a remainder), the one that moves most.
        """
        main: dict[SourceLoop | None, Loop] = {}
        for loop in self._innermost():
            other = main.get(loop.source)
            if other is None or moved(loop) > moved(other):
                main[loop.source] = loop
        return sorted(main.values(), key=lambda loop: loop.source.order if loop.source else ())

    def _innermost(self) -> Iterator[Loop]:
        loops = {}
        for positions in self.flow.loops():
            body = tuple(self.instructions[position] for position in positions)
            loop = Loop(body, main_source(body))
            if moved(loop):
                loops[frozenset(positions)] = loop
        for positions, loop in loops.items():
            if not any(inner < positions for inner in loops):
                yield loop


def moved(loop: Loop) -> int:
    return loop.bits(Kind.LOAD) + loop.bits(Kind.STORE)


def main_source(body: tuple[Instruction, ...]) -> SourceLoop | None:
    votes = Counter(source_loop(instruction.location) for instruction in body)
    del votes[None]
    return votes.most_common(1)[0][0] if votes else None
