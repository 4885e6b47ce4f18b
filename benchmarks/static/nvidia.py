"""cubin and PTX -> machine code, read with the disassemblers that ship inside triton."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import triton

from benchmarks.static.control_flow import Flow
from benchmarks.static.machine_code import Instruction, Kind, MachineCode, Read, assemble
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
    spills = figures["LOCAL"] + figures["STACK"] + 4 * len(re.findall(r"\b(?:STL|LDL)\b", sass))
    return MachineCode(*parse(sass, ptx), figures["REG"], spills, shared)


def tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def parse(sass: str, ptx: str) -> tuple[tuple[Instruction, ...], Flow]:
    return assemble(located(sass, ptx), LABEL, read)


def located(sass: str, ptx: str) -> Iterator[tuple[str, Location]]:
    """nvdisasm names a line of the PTX, and that line's ``.loc`` the lines of the source."""
    of_ptx, location = locations(ptx), NOWHERE
    for line in sass.splitlines():
        if match := PTX_LINE.search(line):
            location = of_ptx[int(match[1]) - 1]
        yield line, location


def read(line: str, location: Location) -> Read | None:
    match = INSTRUCTION.search(line)
    if not match:
        return None
    predicate, opcode, operands = match.groups()
    kind = KINDS.get(opcode.split(".")[0], Kind.OTHER)
    touched = [int(register) for register in REGISTER.findall(operands)]
    bits, written = 0, range(0)
    if kind in (Kind.LOAD, Kind.STORE):
        # Without a width in its name, an instruction moves 32 bits.
        width = re.search(r"\.[US]?(8|16|64|128|256)\b", opcode)
        bits = int(width[1]) if width else 32
    if kind is Kind.LOAD:
        written = range(touched[0], touched[0] + max(1, bits // 32))
    instruction = Instruction(kind, bits, frozenset(written), frozenset([*touched, *written]), location)
    condition, target = jump.groups() if opcode.startswith("BRA") and (jump := JUMP.match(operands)) else ("", "")
    always = not predicate and (opcode.startswith(("EXIT", "RET")) or (target and not condition))
    return instruction, target, not always
