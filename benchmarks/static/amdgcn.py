"""amdgcn assembly text -> machine code."""

import re

from benchmarks.static.control_flow import Flow
from benchmarks.static.machine_code import Instruction, Kind, MachineCode
from benchmarks.static.source_lines import NOWHERE, Location, locations

LABEL = re.compile(r"(\.L\w+):")
INSTRUCTION = re.compile(r"\s+([a-z]\w+)(?:\s+([^;]*))?")
VECTOR_REGISTERS = re.compile(r"\bv(?:(\d+)|\[(\d+):(\d+)\])")

KINDS = (
    (r"(global|buffer|flat)_load", Kind.LOAD),
    (r"(global|buffer|flat)_store", Kind.STORE),
    (r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_", Kind.EXP),
    (r"ds_bpermute|ds_permute|ds_swizzle|v_permlane|v_readlane|\w+_dpp\b", Kind.SHUFFLE),
    (r"s_barrier", Kind.BARRIER),
)
WIDTHS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "short": 16, "byte": 8}


def parse(assembly: str, shared: int) -> MachineCode:
    by_line = locations(assembly)
    location = NOWHERE
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    stops = set()
    code = assembly.partition("\t.section\t.rodata")[0]
    for number, line in enumerate(code.splitlines(), start=1):
        location = by_line.get(number, location)
        if match := LABEL.match(line):
            labels[match[1]] = len(instructions)
        elif match := INSTRUCTION.match(line):
            opcode, operands = match[1], match[2] or ""
            if opcode in ("s_branch", "s_endpgm"):
                stops.add(len(instructions))
            if opcode.startswith(("s_branch", "s_cbranch")):
                jumps.append((len(instructions), operands.strip()))
            instructions.append(read(opcode, operands, location))
    figures = {key: int(value) for key, value in re.findall(r"^\s+\.(\w+):\s+(\d+)$", assembly, re.MULTILINE)}
    return MachineCode(
        tuple(instructions),
        Flow(len(instructions), tuple((origin, labels[label]) for origin, label in jumps), frozenset(stops)),
        registers=figures["vgpr_count"],
        # Scalar registers that are kept in the lanes of a vector register are not in memory.
        spills=figures["private_segment_fixed_size"],
        shared=shared,
    )


def read(opcode: str, operands: str, location: Location) -> Instruction:
    kind = next((kind for pattern, kind in KINDS if re.match(pattern, opcode)), Kind.OTHER)
    groups = [
        frozenset(range(int(one or first), int(one or last) + 1))
        for one, first, last in VECTOR_REGISTERS.findall(operands)
    ]
    moves = kind in (Kind.LOAD, Kind.STORE)
    return Instruction(
        kind,
        bits=next(bits for name, bits in WIDTHS.items() if name in opcode) if moves else 0,
        written=groups[0] if kind is Kind.LOAD else frozenset(),
        touched=frozenset().union(*groups),
        location=location,
    )
