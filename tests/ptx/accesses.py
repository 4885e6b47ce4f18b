"""Instructions that reach beyond their lane: memory, warps, barriers and branches. They call the machine."""

from tests.ptx.findings import UnknownInstruction
from tests.ptx.instructions import Instruction, Operand
from tests.ptx.operations import operation
from tests.ptx.writer import Writer, held_as, itemsize, type_of

GUARDED_BY_THEMSELVES = ("ld", "st", "bra")
NEVER_GUARDED = ("bar", "ret", "exit", "shfl", "redux")
WHOLE_WARP, LAST_LANE = 0xFFFFFFFF, 31


def address(w: Writer, operand: Operand, space: str) -> str:
    base, offset = operand.value
    kind = "u8" if space == "global" else held_as(base.value) if base.kind == "reg" else "u4"
    value = w.read_array(base, kind)
    return f"({value} + {w.constant(offset, kind)})" if offset else value


def elements(i: Instruction, parts: list[str], operand: Operand) -> tuple[str, list[Operand]]:
    """(representation of an element, the registers or numbers of an access)."""
    vector = next((part for part in parts if part in ("v2", "v4", "v8")), "v1")
    found = list(operand.value) if operand.kind == "vector" else [operand]
    if len(found) != int(vector[1:]):
        raise UnknownInstruction(i.opcode)
    return type_of(parts[-1]), found


@operation("ld")
def load(w: Writer, i: Instruction, parts: list[str]) -> None:
    space = parts[1]
    if space == "param":
        return load_parameter(w, i)
    if space not in ("global", "shared"):
        raise UnknownInstruction(i.opcode)
    kind, targets = elements(i, parts, i.operands[0])
    size, number = itemsize(kind), w.number(i)
    mask = w.mask(i)
    loaded, undef = w.fresh("l"), w.fresh("u")
    arguments = f"{address(w, i.operands[1], space)}, {size}, {len(targets)}, {mask}, {w.undef_of(i.operands[1])}"
    w.emit(f"{loaded}, {undef} = m.{space}_memory.load(m, {number}, {arguments})")
    loaded_undef = undef if space == "shared" or number in w.suspects else None
    for index, target in enumerate(targets):
        if target.kind == "sink":
            continue
        held = held_as(target.value)
        value = f"{loaded}[{index}]"
        if itemsize(held) != size:  # a byte fills a register with its sign, or with zeros
            padded = f"{'i' if kind[0] == 'i' else 'u'}{held[1]}"
            value = f"{value}.view({kind.upper()}).astype({padded.upper()}).view({held.upper()})"
        target_undef = loaded_undef
        if mask:
            value = f"np.where({mask}, {value}, {w.register(target.value, held)})"
            target_undef = w.undef_of_choice(mask, loaded_undef, w.undef_of(target))
        w.write(target.value, held, value, target_undef)


def load_parameter(w: Writer, i: Instruction) -> None:
    """A parameter by its name, or by an address of 64 or 32 bits that the code has chosen among several."""
    target, (base, offset) = i.operands[0], i.operands[1].value
    if i.guard:
        raise UnknownInstruction(f"guarded {i.opcode}")
    held, width = held_as(target.value), held_as(base.value) if base.kind == "reg" else "u8"
    index = f"({w.read_array(base, width)} + {w.constant(offset, width)}) >> {width.upper()}(3)"
    w.write(target.value, held, f"m.parameters[{index}].astype({held.upper()})", w.undef_of(base))


@operation("st")
def store(w: Writer, i: Instruction, parts: list[str]) -> None:
    space = parts[1]
    if space not in ("global", "shared"):
        raise UnknownInstruction(i.opcode)
    kind, sources = elements(i, parts, i.operands[1])
    size = itemsize(kind)
    mask = w.mask(i)
    values = []
    for source in sources:
        held = held_as(source.value) if source.kind == "reg" else f"u{size}"
        value = w.read_array(source, held)
        values.append(value if itemsize(held) == size else f"{value}.astype(U{size})")
    where = f"{address(w, i.operands[0], space)}, {size}, ({', '.join(values)},), {mask}"
    undef = f"{w.undef_of(i.operands[0])}, {w.union(sources)}"
    w.emit(f"m.{space}_memory.store(m, {w.number(i)}, {where}, {undef})")


@operation("createpolicy")
def cache_policy(w: Writer, i: Instruction, parts: list[str]) -> None:
    """A hint to the cache: any number."""
    w.write(i.operands[0].value, "u8", f"m.full({w.constant(0, 'u8')})")


@operation("membar", "fence", "nop")
def without_effect(w: Writer, i: Instruction, parts: list[str]) -> None:
    if i.opcode.startswith("fence.proxy"):
        raise UnknownInstruction(i.opcode)


# Warps


@operation("shfl")
def shuffle(w: Writer, i: Instruction, parts: list[str]) -> None:
    target, value, by, clamp, members = i.operands
    if parts[1] != "sync" or parts[2] not in ("bfly", "idx") or parts[-1] != "b32" or clamp.value != LAST_LANE:
        raise UnknownInstruction(i.opcode)
    if members.kind != "int" or members.value & WHOLE_WARP != WHOLE_WARP:
        raise UnknownInstruction(f"{i.opcode} among part of a warp")
    moved, undef, moved_undef = w.fresh("l"), w.undef_of(value), w.fresh("u")
    arguments = f"{parts[2]!r}, {w.read_array(value, 'u4')}, {undef}, {w.read_array(by, 'u4')}"
    w.emit(f"{moved}, {moved_undef} = m.shuffle({w.number(i)}, {arguments})")
    w.write(target.value, "u4", moved, moved_undef if undef else None)


REDUCTIONS = {
    ("add", "s32"): "np.add",
    ("add", "u32"): "np.add",
    ("max", "f32"): "np.fmax",
    ("min", "f32"): "np.fmin",
    ("max", "NaN", "f32"): "np.maximum",
    ("min", "NaN", "f32"): "np.minimum",
    ("max", "s32"): "np.maximum",
    ("min", "s32"): "np.minimum",
    ("max", "u32"): "np.maximum",
    ("min", "u32"): "np.minimum",
    ("and", "b32"): "np.bitwise_and",
    ("or", "b32"): "np.bitwise_or",
    ("xor", "b32"): "np.bitwise_xor",
}


@operation("redux")
def reduce(w: Writer, i: Instruction, parts: list[str]) -> None:
    target, value, members = i.operands
    if parts[1] != "sync" or tuple(parts[2:]) not in REDUCTIONS:
        raise UnknownInstruction(i.opcode)
    kind, undef = type_of(parts[-1]), w.undef_of(value)
    out, out_undef = w.fresh("l"), w.fresh("u")
    arguments = f"{REDUCTIONS[tuple(parts[2:])]}, {w.read_array(value, kind)}, {undef}, {w.read(members, 'u4')}"
    w.emit(f"{out}, {out_undef} = m.reduce({w.number(i)}, {arguments})")
    w.write(target.value, kind, out, out_undef if undef else None)


# Control flow: the machine reads the last instruction of a block.


@operation("bar", "barrier")
def barrier(w: Writer, i: Instruction, parts: list[str]) -> None:
    if parts[:2] == ["bar", "warp"]:
        return
    if i.opcode not in ("bar.sync", "barrier.sync", "barrier.sync.aligned") or [o.value for o in i.operands] != [0]:
        raise UnknownInstruction(i.opcode)


@operation("bra")
def branch(w: Writer, i: Instruction, parts: list[str]) -> None:
    w.branch = w.mask(i) or "None"


@operation("ret", "exit")
def end(w: Writer, i: Instruction, parts: list[str]) -> None:
    pass
