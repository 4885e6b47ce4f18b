"""One row of the report: the cost of one loop of one compiled kernel."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.static.machine_code import Kind, Loop, MachineCode
from benchmarks.static.roofline import DEVICES, LIMITS, Prediction, predict, resident_programs
from benchmarks.static.specialisations import Specialisation


@dataclass(frozen=True)
class LoopCost:
    """Figures of a loop, beside those of its kernel. A kernel without a loop has one row, with an empty ``loop``."""

    kernel: str  # with its specialisation
    arch: str
    loop: str  # the jitted function whose loop it is, numbered where a kernel has several
    instructions_per_element: float | None
    exp_per_element: float | None
    load_bits: tuple[int, ...]  # widths of its accesses to global memory by one thread
    store_bits: tuple[int, ...]
    shuffles: int
    barriers: int
    registers: int  # per thread
    spills: int  # bytes of memory per thread
    shared: int  # bytes per program
    programs_per_sm: int  # that one SM holds at a time
    bytes_in_flight: int  # that one SM has asked for and not yet got, at most
    gpus: tuple[str, ...]  # of the architecture, for which a share of each of the following is predicted
    bandwidth: tuple[float, ...]
    issue: tuple[float, ...]
    exp_unit: tuple[float, ...]
    source: str  # the lines that lead to the loop, outermost first


def loop_costs(spec: Specialisation, arch: str, code: MachineCode) -> list[LoopCost]:
    loops = code.loops()
    names = [loop.source.function if loop.source else "unnamed" for loop in loops]
    numbered = [
        f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)
    ]
    found = [loop_cost(spec, arch, code, loop, name) for loop, name in zip(loops, numbered, strict=True)]
    return found or [loop_cost(spec, arch, code, Loop((), None), "")]


def loop_cost(spec: Specialisation, arch: str, code: MachineCode, loop: Loop, name: str) -> LoopCost:
    programs = resident_programs(arch, spec.num_warps, code.registers, code.shared)
    programs = min(programs, spec.launched_per_sm or programs)
    bytes_in_flight = programs * spec.num_warps * LIMITS[arch].warp * loop.bits_in_flight() // 8
    elements = elements_per_thread(spec, loop)
    instructions = exp = None
    predicted: dict[str, Prediction] = {}
    if elements:
        instructions = round(len(loop.body) / elements, 2)
        exp = round(loop.count(Kind.EXP) / elements, 2)
        read_bits = 0 if loop.source and loop.source.function in spec.cached_loops else loop.bits(Kind.LOAD)
        memory_bytes = (read_bits + loop.bits(Kind.STORE)) / 8 / elements
        in_flight = bytes_in_flight if read_bits else None
        on = [device for device in DEVICES if device.arch == arch]
        predicted = {device.name: predict(device, instructions, exp, memory_bytes, in_flight) for device in on}
    return LoopCost(
        kernel=spec.name,
        arch=arch,
        loop=name,
        instructions_per_element=instructions,
        exp_per_element=exp,
        load_bits=loop.widths(Kind.LOAD),
        store_bits=loop.widths(Kind.STORE),
        shuffles=loop.count(Kind.SHUFFLE),
        barriers=loop.count(Kind.BARRIER),
        registers=code.registers,
        spills=code.spills,
        shared=code.shared,
        programs_per_sm=programs,
        bytes_in_flight=bytes_in_flight,
        gpus=tuple(predicted),
        bandwidth=tuple(shares.bandwidth for shares in predicted.values()),
        issue=tuple(shares.issue for shares in predicted.values()),
        exp_unit=tuple(shares.exp_unit for shares in predicted.values()),
        source=" > ".join(f"{Path(path).name}:{line}" for path, line in loop.source.lines) if loop.source else "",
    )


def elements_per_thread(spec: Specialisation, loop: Loop) -> float:
    """Of one iteration, by the bytes that it reads, or writes if it only writes."""
    read, written = loop.bits(Kind.LOAD) / 8, loop.bits(Kind.STORE) / 8
    return read / spec.read_bytes if read else written / spec.written_bytes if written else 0
