"""A kernel -> one Python function per basic block (writer.py), from the tables of operations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ptx import arithmetic, undefined
from tests.ptx.accesses import GUARDED_BY_THEMSELVES, NEVER_GUARDED
from tests.ptx.findings import UnknownInstruction
from tests.ptx.instructions import Instruction
from tests.ptx.operations import OPERATIONS
from tests.ptx.parse import Kernel
from tests.ptx.undefined import maybe_undefined
from tests.ptx.writer import NUMPY, Writer, held_as

SCOPE: dict[str, Any] = {
    "np": np,
    **{name: value for module in (arithmetic, undefined) for name, value in vars(module).items() if callable(value)},
    **{name.upper(): dtype for name, dtype in NUMPY.items()},
}
"""Names that the written functions use."""


@dataclass
class Program:
    """A kernel that can run.

    Attributes:
        kernel: what was translated.
        shared_bytes: shared memory of a CTA.
        suspects: numbers of loads whose results are followed as if they were undefined.
        instructions: by number.
        functions: of the blocks.
    """

    kernel: Kernel
    shared_bytes: int
    suspects: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.instructions = self.kernel.instructions
        self.functions = functions(self.kernel, self.suspects)

    @property
    def warps(self) -> int:
        """Warps of a CTA."""
        return self.kernel.threads // 32


def functions(kernel: Kernel, suspects: frozenset[int]) -> list[Callable[..., Any]]:
    numbers = {id(instruction): number for number, instruction in enumerate(kernel.instructions)}
    maybe = maybe_undefined(kernel, suspects)
    scope, sources = dict(SCOPE), []
    for block in kernel.blocks:
        writer = Writer(kernel, block, maybe, numbers, suspects)
        for instruction in block.instructions:
            try:
                write(writer, instruction)
            except UnknownInstruction as error:
                raise UnknownInstruction(f"{instruction.place}: {error} is not emulated") from None
        sources.append(writer.source())
        scope |= writer.constants
    exec(compile("\n".join(sources), f"<{kernel.name}>", "exec"), scope)
    return [scope[f"block_{block.index}"] for block in kernel.blocks]


def write(w: Writer, i: Instruction) -> None:
    operation = OPERATIONS.get(i.name)
    if operation is None or (i.guard and i.name in NEVER_GUARDED):
        raise UnknownInstruction(f"{'guarded ' if operation else ''}{i.opcode}")
    parts = i.opcode.split(".")
    if not i.guard or i.name in GUARDED_BY_THEMSELVES:
        return operation(w, i, parts)
    mask = w.mask(i)
    written = i.effects()[1]
    before = {register: (w.register(register, held_as(register)), w.undef_of(register)) for register in written}
    operation(w, i, parts)
    for register, (old, old_undef) in before.items():
        new = w.register(register, held_as(register))
        undef = w.undef_of_choice(str(mask), w.undef_of(register), old_undef)
        w.write(register, held_as(register), f"np.where({mask}, {new}, {old})", undef)
