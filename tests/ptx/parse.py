"""The text of a PTX module with one entry -> its parameters, blocks and shared memory."""

import re
from dataclasses import dataclass, field

from tests.ptx.blocks import Block, find_live_registers, split_into_blocks
from tests.ptx.findings import UnknownInstruction
from tests.ptx.instructions import Instruction, read_instruction

ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(")
PARAMETER = re.compile(r"\.param\s+\.\w+\s.*?([\w$]+_param_\d+)")
SHARED = re.compile(r"\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[(\d*)\]")
LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?')
WITHOUT_EFFECT = (".reg", ".pragma", ".section", ".b8", ".b32", ".b64")


@dataclass
class Kernel:
    """One entry.

    Attributes:
        name: of the entry.
        parameters: their names, in order; each takes 8 bytes.
        blocks: in the order of the text.
        threads: of a CTA.
        undefined: registers that may be read before anything writes them.
        shared: address of each symbol in shared memory.
        static_shared: bytes that the symbols declare.
        text: the module.
    """

    name: str
    parameters: list[str]
    blocks: list[Block]
    threads: int
    undefined: frozenset[str]
    shared: dict[str, int] = field(default_factory=dict)
    static_shared: int = 0
    text: str = ""

    @property
    def instructions(self) -> list[Instruction]:
        return [instruction for block in self.blocks for instruction in block.instructions]


def parse(ptx: str) -> Kernel:
    """Read a module.

    Raises:
        UnknownInstruction: a statement that is not understood, with its line.
    """
    entry = ENTRY.search(ptx)
    threads = re.search(r"\.reqntid\s+(\d+)", ptx)
    if not entry or not threads:
        raise UnknownInstruction("expected an .entry with .reqntid")
    parameters = PARAMETER.findall(ptx[entry.end() : ptx.index(")", entry.end())])
    shared, static = {}, 0
    for name, size in SHARED.findall(ptx):
        shared[name] = static
        static += (int(size or 0) + 15) // 16 * 16
    blocks = split_into_blocks(*read_body(ptx, first_line=ptx[: entry.start()].count("\n")))
    undefined = find_live_registers(blocks)
    return Kernel(entry[1], parameters, blocks, int(threads[1]), undefined, shared, static, ptx)


def read_body(ptx: str, first_line: int) -> tuple[list[Instruction], dict[str, int]]:
    """(instructions, index of the instruction after each label)."""
    files = {number: (f"{folder}/{name}" if name else folder) for number, folder, name in FILE.findall(ptx)}
    lines = [line.split("//", 1)[0].strip() for line in ptx.splitlines()]
    begin = lines.index("{", first_line) + 1
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    source, pending = ("", 0), ""
    for number, line in enumerate(lines[begin : lines.index("}", begin)], begin + 1):
        if line == "{":
            raise UnknownInstruction(f"PTX line {number}: a scope inside the entry")
        if not line or (not pending and line.startswith(WITHOUT_EFFECT)):
            continue
        if found := LOCATION.match(line):
            source = (files.get(found[1], found[1]), int(found[2]))
        elif line.endswith(":") and not pending:
            labels[line[:-1]] = len(instructions)
        elif line.startswith(".") and not pending:
            raise UnknownInstruction(f"PTX line {number}: {line}")
        else:
            pending = f"{pending} {line}".strip()
            if pending.endswith(";"):
                instructions.append(read_instruction(number, pending, source))
                pending = ""
    return instructions, labels
