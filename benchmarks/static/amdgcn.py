"""amdgcn assembly text -> machine code."""

import re

from benchmarks.static.machine_code import Instruction, Kind, MachineCode, Read, assemble
from benchmarks.static.source_lines import Location, locations

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
    code = assembly.partition("\t.section\t.rodata")[0].splitlines()
    instructions, flow = assemble(zip(code, locations(assembly), strict=False), LABEL, read)
    figures = {key: int(value) for key, value in re.findall(r"^\s+\.(\w+):\s+(\d+)$", assembly, re.MULTILINE)}
    # Scalar registers that are kept in the lanes of a vector register are not in memory.
    spills = figures["private_segment_fixed_size"]
    return MachineCode(instructions, flow, figures["vgpr_count"], spills, shared)


def read(line: str, location: Location) -> Read | None:
    match = INSTRUCTION.match(line)
    if not match:
        return None
    opcode, operands = match[1], match[2] or ""
    kind = next((kind for pattern, kind in KINDS if re.match(pattern, opcode)), Kind.OTHER)
    groups = [
        frozenset(range(int(one or first), int(one or last) + 1))
        for one, first, last in VECTOR_REGISTERS.findall(operands)
    ]
    moves = kind in (Kind.LOAD, Kind.STORE)
    instruction = Instruction(
        kind,
        bits=next(bits for name, bits in WIDTHS.items() if name in opcode) if moves else 0,
        written=groups[0] if kind is Kind.LOAD else frozenset(),
        touched=frozenset().union(*groups),
        location=location,
    )
    target = operands.strip() if opcode.startswith(("s_branch", "s_cbranch")) else ""
    return instruction, target, opcode not in ("s_branch", "s_endpgm")
