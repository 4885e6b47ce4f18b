"""cubin and PTX -> machine code, read with the disassemblers that ship inside triton."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton

from benchmarks.static.control_flow import Flow
from benchmarks.static.machine_code import Instruction, Kind, MachineCode
from benchmarks.static.source_lines import NOWHERE, Location, locations

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"

PTX_LINE = re.compile(r'//## File "\.nv_debug_ptx_txt", line (\d+)')
LABEL = re.compile(r"(\.L_x_\d+):")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
JUMP = re.compile(r"([^`]*)`\((\.L_x_\d+)\)")
REGISTER = re.compile(r"\bR(\d+)")

KINDS = {
    "LDG": Kind.LOAD,
    "STG": Kind.STORE,
    "MUFU": Kind.EXP,
    "SHFL": Kind.SHUFFLE,
    "REDUX": Kind.SHUFFLE,
    "CREDUX": Kind.SHUFFLE,
    "BAR": Kind.BARRIER,
}


def disassemble(cubin: bytes, ptx: str, shared: int) -> MachineCode:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = tool("cuobjdump", "-res-usage", file.name)
        sass = tool("nvdisasm", "-gp", "-c", "-ndf", file.name)
    figures = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    instructions, flow = parse(sass, ptx)
    return MachineCode(
        instructions,
        flow,
        registers=figures["REG"],
        spills=figures["LOCAL"] + figures["STACK"] + 4 * len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        shared=shared,
    )


def tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def parse(sass: str, ptx: str) -> tuple[tuple[Instruction, ...], Flow]:
    """nvdisasm names a line of the PTX, and that line's ``.loc`` the lines of the source."""
    by_line = locations(ptx)
    location, located = NOWHERE, [NOWHERE]
    for number in range(1, len(ptx.splitlines()) + 1):
        location = by_line.get(number, location)
        located.append(location)

    location = NOWHERE
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    stops = set()
    for line in sass.splitlines():
        if match := PTX_LINE.search(line):
            location = located[int(match[1])]
        elif match := LABEL.match(line):
            labels[match[1]] = len(instructions)
        elif match := INSTRUCTION.search(line):
            predicate, opcode, operands = match.groups()
            jump = JUMP.match(operands) if opcode.startswith("BRA") else None
            if jump:
                jumps.append((len(instructions), jump[2]))
            if not predicate and (opcode.startswith(("EXIT", "RET")) or (jump and not jump[1])):
                stops.add(len(instructions))
            instructions.append(read(opcode, operands, location))
    targets = tuple((origin, labels[label]) for origin, label in jumps)
    return tuple(instructions), Flow(len(instructions), targets, frozenset(stops))


def read(opcode: str, operands: str, location: Location) -> Instruction:
    kind = KINDS.get(opcode.split(".")[0], Kind.OTHER)
    touched = [int(register) for register in REGISTER.findall(operands)]
    bits, written = 0, range(0)
    if kind in (Kind.LOAD, Kind.STORE):
        # Without a width in its name, an instruction moves 32 bits.
        width = re.search(r"\.[US]?(8|16|64|128|256)\b", opcode)
        bits = int(width[1]) if width else 32
    if kind is Kind.LOAD:
        written = range(touched[0], touched[0] + max(1, bits // 32))
    return Instruction(kind, bits, frozenset(written), frozenset([*touched, *written]), location)
