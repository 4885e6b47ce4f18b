"""Basic blocks of a kernel, the jumps between them, and which registers live across them."""

from dataclasses import dataclass
from itertools import pairwise

from tests.ptx.instructions import Instruction

ENDS = ("bra", "ret", "exit", "bar", "barrier")


@dataclass
class Block:
    """Instructions that run one after the other. The last one may branch, return or wait at a barrier.

    Attributes:
        index: its place among the kernel's blocks.
        target: index of the block that its branch jumps to.
        live_in: registers that it reads before it writes them.
        live_out: registers that it writes and a later block reads.
    """

    index: int
    instructions: list[Instruction]
    target: int | None = None
    live_in: frozenset[str] = frozenset()
    live_out: frozenset[str] = frozenset()

    @property
    def last(self) -> Instruction:
        return self.instructions[-1]


def split_into_blocks(instructions: list[Instruction], labels: dict[str, int]) -> list[Block]:
    """Split after a branch, a return or a barrier, and before a label that a branch jumps to.

    Args:
        labels: index of the instruction after each label.
    """
    jumps = [str(instruction.operands[-1].value) for instruction in instructions if instruction.name == "bra"]
    starts = {0} | {labels[label] for label in jumps}
    starts |= {index + 1 for index, instruction in enumerate(instructions) if instruction.name in ENDS}
    order = sorted(start for start in starts if start < len(instructions))
    of_start = {start: index for index, start in enumerate(order)}
    blocks = []
    for index, (start, end) in enumerate(pairwise([*order, len(instructions)])):
        block = Block(index, instructions[start:end])
        if block.last.name == "bra":
            block.target = of_start[labels[str(block.last.operands[-1].value)]]
        blocks.append(block)
    return blocks


def successors(block: Block, count: int) -> list[int]:
    if block.last.name in ("ret", "exit"):
        return []
    following = [] if block.last.name == "bra" and not block.last.guard else [block.index + 1]
    if block.target is not None:
        following.append(block.target)
    return [index for index in following if index < count]


def find_live_registers(blocks: list[Block]) -> frozenset[str]:
    """Set ``live_in`` and ``live_out`` of every block; the registers that may be read before anything writes them."""
    written: list[set[str]] = []
    for block in blocks:
        read_first: set[str] = set()
        here: set[str] = set()
        for instruction in block.instructions:
            reads, writes = instruction.effects()
            read_first |= set(reads) - here
            here |= set(writes)
        block.live_in = frozenset(read_first)
        written.append(here)

    needed: list[frozenset[str]] = [block.live_in for block in blocks]  # registers that are read from this block on
    changed = True
    while changed:
        changed = False
        for block in reversed(blocks):
            after = frozenset().union(*(needed[index] for index in successors(block, len(blocks))))
            new = block.live_in | (after - written[block.index])
            if new != needed[block.index]:
                needed[block.index], changed = new, True
    for block in blocks:
        after = frozenset().union(*(needed[index] for index in successors(block, len(blocks))))
        block.live_out = frozenset(written[block.index] & after)
    return needed[0]
