"""Lanes in which a value is undefined, as a bool array or None for no lane; and which registers can be."""

from typing import Any

import numpy as np

from tests.ptx.parse import Kernel


def either(*undefs: Any) -> Any:
    found = [undef for undef in undefs if undef is not None]
    return np.logical_or.reduce(found) if found else None


def undef_of_choice(mask: Any, if_true: Any, if_false: Any) -> Any:
    """Of ``np.where(mask, a, b)``."""
    if if_true is None and if_false is None:
        return None
    picked = np.where(mask, False if if_true is None else if_true, False if if_false is None else if_false)
    return picked if picked.any() else None


def undef_of_logic(is_and: bool, a: Any, b: Any, undef_a: Any, undef_b: Any) -> Any:
    """Of ``a & b`` or ``a | b``: a defined operand that decides alone makes the other one irrelevant."""
    if undef_a is None and undef_b is None:
        return None
    undef_a, undef_b = (False if undef is None else undef for undef in (undef_a, undef_b))
    open_a, open_b = (a, b) if is_and else (~a, ~b)
    undef = (undef_a & undef_b) | (undef_a & open_b) | (undef_b & open_a)
    return undef if undef.any() else None


def maybe_undefined(kernel: Kernel, suspects: frozenset[int]) -> frozenset[str]:
    """Registers that may hold what nobody wrote: all that depend on where that can begin, in any order of blocks.

    Args:
        suspects: numbers of loads whose results count as undefined.
    """
    found = set(kernel.undefined) - padding(kernel)
    for number, instruction in enumerate(kernel.instructions):
        if instruction.opcode.startswith("ld.shared") or number in suspects:
            found |= set(instruction.effects()[1])
    effects = [i.effects() for i in kernel.instructions if not i.opcode.startswith(("ld.global", "ld.param"))]
    before = -1
    while len(found) != before:
        before = len(found)
        for reads, writes in effects:
            if found.intersection(reads):
                found |= set(writes)
    return frozenset(found)


def padding(kernel: Kernel) -> set[str]:
    """Registers that nothing writes and that only fill up a wider one.

    The compiler pads a pair of float32 so, and uses the other half alone: halves are not followed one by one.
    """
    written = {register for instruction in kernel.instructions for register in instruction.effects()[1]}
    read_otherwise = {
        register
        for instruction in kernel.instructions
        if not (instruction.name == "mov" and instruction.operands[-1].kind == "vector")
        for register in instruction.effects()[0]
    }
    return set(kernel.undefined) - written - read_otherwise
