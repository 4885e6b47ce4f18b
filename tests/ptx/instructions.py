"""One statement of PTX: its opcode, operands and guard."""

import re
import struct
from dataclasses import dataclass
from typing import Any

from tests.ptx.findings import UnknownInstruction

STATEMENT = re.compile(r"(?:@(!?)%(\w+)\s+)?([a-z][\w.:]*)\s*(.*);$", re.DOTALL)
SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.[xyz]|%laneid")
WITHOUT_RESULT = ("st", "bra", "bar", "barrier", "ret", "exit", "membar", "fence")


@dataclass(frozen=True)
class Operand:
    """One operand.

    Attributes:
        kind: "reg", "vector", "address", "int", "float", "symbol", "special" or "sink".
        value: the register's name, a tuple of operands, (base operand, offset), the number, the name, or None.
    """

    kind: str
    value: Any

    def registers(self) -> list[str]:
        match self.kind:
            case "reg":
                return [self.value]
            case "vector":
                return [name for part in self.value for name in part.registers()]
            case "address":
                return self.value[0].registers()
        return []


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        line: of the PTX, from 1.
        text: the statement.
        opcode: with its modifiers, "ld.global.v4.b32".
        operands: the result first, where there is one.
        guard: (predicate register, negated), or None.
        source: (file, line) that it was compiled from.
    """

    line: int
    text: str
    opcode: str
    operands: tuple[Operand, ...]
    guard: tuple[str, bool] | None
    source: tuple[str, int]

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".", 1)[0]

    @property
    def place(self) -> str:
        return f"PTX line {self.line}: {self.text}   ({self.source_line})"

    @property
    def source_line(self) -> str:
        return f"{self.source[0].rsplit('/', 1)[-1]}:{self.source[1]}"

    def effects(self) -> tuple[list[str], list[str]]:
        """(read, written) registers. A guarded instruction also reads its results: other lanes keep theirs."""
        results, operands = (
            ((), self.operands) if self.name in WITHOUT_RESULT else (self.operands[:1], self.operands[1:])
        )
        written = [name for operand in results for name in operand.registers()]
        read = [name for operand in operands for name in operand.registers()]
        if self.guard:
            read += [self.guard[0], *written]
        return read, written


def read_instruction(line: int, text: str, source: tuple[str, int]) -> Instruction:
    match = STATEMENT.match(text)
    if not match:
        raise UnknownInstruction(f"PTX line {line}: {text}")
    negated, guard, opcode, rest = match.groups()
    operands = tuple(read_operand(part) for part in split_operands(rest))
    return Instruction(line, text, opcode, operands, (guard, bool(negated)) if guard else None, source)


def split_operands(text: str) -> list[str]:
    """Parts between commas that lie in no brackets."""
    parts, depth, part = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and not depth:
            parts.append(part.strip())
            part = ""
        else:
            part += character
    return [*parts, part.strip()] if part.strip() else parts


def read_operand(text: str) -> Operand:
    if text.startswith("{"):
        return Operand("vector", tuple(read_operand(part) for part in split_operands(text.strip("{} "))))
    if text.startswith("["):
        base, _, offset = text.strip("[] ").partition("+")
        return Operand("address", (read_operand(base.strip()), int(offset.strip() or "0", 0)))
    if text == "_":
        return Operand("sink", None)
    if SPECIAL.fullmatch(text):
        return Operand("special", text[1:])
    if re.fullmatch(r"%\w+", text):
        return Operand("reg", text[1:])
    if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
        return Operand("float", struct.unpack(">f", bytes.fromhex(match[1]))[0])
    if match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", text):
        return Operand("float", struct.unpack(">d", bytes.fromhex(match[1]))[0])
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
        return Operand("int", int(text.rstrip("U"), 0))
    if re.fullmatch(r"-?\d+\.\d+", text):
        return Operand("float", float(text))
    if re.fullmatch(r"[\w$]+", text):
        return Operand("symbol", text)
    raise UnknownInstruction(f"operand {text}")
