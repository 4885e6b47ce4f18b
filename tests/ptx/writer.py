"""Writes the source of one Python function per basic block, on numpy arrays with one number per active lane.

Registers keep their bits as unsigned integers (predicates as bool); a view makes them signed or floating. Beside a
register that may be undefined goes a bool array of the lanes in which it is, or None.

A function of a block takes ``(R, U, m)``: registers, their undefined lanes, and the machine.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.ptx.blocks import Block
from tests.ptx.findings import UnknownInstruction
from tests.ptx.instructions import Instruction, Operand
from tests.ptx.parse import Kernel

NUMPY: dict[str, Any] = {
    **{"b1": np.bool_, "u1": np.uint8, "i1": np.int8, "u2": np.uint16, "i2": np.int16, "f2": np.float16},
    **{"u4": np.uint32, "i4": np.int32, "f4": np.float32, "u8": np.uint64, "i8": np.int64, "f8": np.float64},
}
"""Representations: kind and bytes."""

TYPES = {
    **{"pred": "b1", "b8": "u1", "u8": "u1", "s8": "i1", "b16": "u2", "u16": "u2", "s16": "i2", "f16": "f2"},
    **{"b32": "u4", "u32": "u4", "s32": "i4", "f32": "f4", "b64": "u8", "u64": "u8", "s64": "i8", "f64": "f8"},
}
"""PTX's types by name -> representation."""

HELD = {"p": "b1", "rs": "u2", "r": "u4", "rd": "u8", "f": "u4", "fd": "u8"}
SPECIAL = {"tid.x": "m.tid", "laneid": "m.laneid", "ntid.x": "m.ntid"}
SPECIAL |= {f"{name}.{axis}": f"m.{name}({n})" for name in ("ctaid", "nctaid") for n, axis in enumerate("xyz")}


def held_as(register: str) -> str:
    """Representation in which a register is kept, by its name."""
    return HELD[register.rstrip("0123456789")]


def type_of(name: str) -> str:
    if name not in TYPES:
        raise UnknownInstruction(f"type {name}")
    return TYPES[name]


def itemsize(representation: str) -> int:
    return int(representation[1]) if representation != "b1" else 1


class Writer:
    """The source of one block's function.

    Args:
        undefined: registers that may be undefined anywhere.
        numbers: of the kernel's instructions, by identity.
        suspects: numbers of loads whose results count as undefined.
    """

    def __init__(
        self,
        kernel: Kernel,
        block: Block,
        undefined: frozenset[str],
        numbers: dict[int, int],
        suspects: frozenset[int],
    ):
        self.kernel, self.block, self.undefined, self.numbers, self.suspects = (
            kernel,
            block,
            undefined,
            numbers,
            suspects,
        )
        self.lines: list[str] = []
        self.branch = "None"  # where it is taken; None means everywhere
        self.constants: dict[str, Any] = {}
        self._locals: dict[tuple[str, str], str] = {}  # by register and representation
        self._undef: dict[str, str | None] = {}
        self._count = 0

    def emit(self, line: str) -> None:
        self.lines.append(line)

    def fresh(self, prefix: str = "v") -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def number(self, instruction: Instruction) -> int:
        return self.numbers[id(instruction)]

    def source(self) -> str:
        for register in sorted(self.block.live_out):
            self.emit(f"R[{register!r}] = {self.register(register, held_as(register))}")
            if self._undef.get(register) is not None:
                self.emit(f"U[{register!r}] = {self._undef[register]}")
        body = "\n    ".join([*self.lines, f"return {self.branch}"])
        return f"def block_{self.block.index}(R, U, m):\n    {body}\n"

    # Values

    def constant(self, value: Any, representation: str) -> str:
        dtype = NUMPY[representation]
        if representation[0] in "ui":
            size = itemsize(representation)
            scalar = np.array(int(value) & ((1 << 8 * size) - 1), f"u{size}").view(dtype)[()]
        else:
            scalar = dtype(value)
        name = f"C{self.block.index}_{len(self.constants)}"
        self.constants[name] = scalar
        return name

    def read(self, operand: Operand, representation: str) -> str:
        """An expression of the operand's bits in this representation: an array, or a scalar for a number."""
        match operand.kind:
            case "reg":
                return self.register(operand.value, representation)
            case "int" if representation[0] == "f":
                bits = self.constant(operand.value, f"u{representation[1]}")
                return f"{bits}.view({representation.upper()})"
            case "int" | "float" if representation[0] == "f" or operand.kind == "int":
                return self.constant(operand.value, representation)
            case "float":
                bits = NUMPY[f"f{representation[1]}"](operand.value).view(NUMPY[f"u{representation[1]}"])
                return self.constant(bits, representation)
            case "special" if operand.value in ("tid.y", "tid.z"):
                return self.constant(0, representation)
            case "special" if operand.value in SPECIAL:
                return f"{SPECIAL[operand.value]}.astype({representation.upper()})"
            case "symbol":
                return self.constant(self.address_of(operand.value), representation)
        raise UnknownInstruction(f"{operand}")

    def read_array(self, operand: Operand, representation: str) -> str:
        """As :meth:`read`, and never a scalar."""
        value = self.read(operand, representation)
        return value if operand.kind in ("reg", "special") else f"m.full({value})"

    def address_of(self, symbol: str) -> int:
        if symbol in self.kernel.shared:
            return self.kernel.shared[symbol]
        if symbol in self.kernel.parameters:
            return 8 * self.kernel.parameters.index(symbol)
        raise UnknownInstruction(f"address of {symbol}")

    def register(self, name: str, representation: str) -> str:
        """The local that holds a register's bits in this representation."""
        if (name, representation) in self._locals:
            return self._locals[(name, representation)]
        held = next((local for (register, _), local in self._locals.items() if register == name), None)
        if held is None:
            held = self._locals[(name, held_as(name))] = self.fresh()
            self.emit(f"{held} = R[{name!r}]")
            if held_as(name) == representation:
                return held
        if itemsize(representation) != itemsize(held_as(name)):
            raise UnknownInstruction(f"%{name} read as {representation}")
        local = self._locals[(name, representation)] = self.fresh()
        self.emit(f"{local} = {held}.view({representation.upper()})")
        return local

    def write(self, register: str, representation: str, expression: str, undef: str | None = None) -> None:
        local = self.fresh()
        self.emit(f"{local} = {expression}")
        for key in [key for key in self._locals if key[0] == register]:
            del self._locals[key]
        self._locals[(register, representation)] = local
        if register in self.undefined:
            self._undef[register] = undef or "None"

    # Undefined lanes

    def undef_of(self, operand: Operand | str) -> str | None:
        """The local with the lanes in which an operand is undefined; None where it cannot be."""
        if isinstance(operand, Operand):
            if operand.kind == "address":
                return self.undef_of(operand.value[0])
            if operand.kind != "reg":
                return None
            operand = str(operand.value)
        if operand not in self.undefined:
            return None
        if operand not in self._undef:
            self._undef[operand] = self.fresh("u")
            self.emit(f"{self._undef[operand]} = U.get({operand!r})")
        return self._undef[operand]

    def union(self, operands: Sequence[Operand]) -> str | None:
        """Where any of the operands is undefined."""
        found = list(dict.fromkeys(filter(None, map(self.undef_of, operands))))
        if len(found) <= 1:
            return found[0] if found else None
        local = self.fresh("u")
        self.emit(f"{local} = either({', '.join(found)})")
        return local

    def undef_of_choice(self, mask: str, if_true: str | None, if_false: str | None) -> str | None:
        """Where ``np.where(mask, …, …)`` is undefined."""
        if if_true in (None, "None") and if_false in (None, "None"):
            return None
        local = self.fresh("u")
        self.emit(f"{local} = undef_of_choice({mask}, {if_true}, {if_false})")
        return local

    # Guards

    def mask(self, instruction: Instruction) -> str | None:
        """The lanes in which a guarded instruction runs."""
        if not instruction.guard:
            return None
        name, negated = instruction.guard
        mask = self.register(name, "b1")
        if undef := self.undef_of(name):
            self.emit(f"m.check_defined({self.number(instruction)}, 'predicate', {undef})")
        if not negated:
            return mask
        local = self.fresh()
        self.emit(f"{local} = ~{mask}")
        return local
