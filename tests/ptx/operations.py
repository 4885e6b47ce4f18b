"""Instructions that compute: opcode -> what a Writer writes for it. Every lane for itself, without memory."""

from collections.abc import Callable

from tests.ptx.findings import UnknownInstruction
from tests.ptx.instructions import Instruction, Operand
from tests.ptx.writer import Writer, held_as, itemsize, type_of

Operation = Callable[[Writer, Instruction, list[str]], None]

OPERATIONS: dict[str, Operation] = {}
"""By the opcode's first part. Called with the opcode's parts."""

ROUNDED_OTHERWISE = frozenset({"sat", "cc", "rz", "rm", "rp", "relu"})


def operation(*names: str) -> Callable[[Operation], Operation]:
    def register(function: Operation) -> Operation:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return register


def elementwise(
    w: Writer, i: Instruction, representation: str, expression: str, result: str | None = None, read_as: str = ""
) -> None:
    """Write ``expression`` with {0}, {1} … for the operands.

    Args:
        representation: of the operands, and of the result unless ``result`` says another.
        read_as: format of each operand, "flush({})".
    """
    sources = i.operands[1:]
    if f"{{{len(sources) - 1}}}" not in expression or f"{{{len(sources)}}}" in expression:
        raise UnknownInstruction(f"{i.opcode} of {len(sources)} operands")
    values = [w.read(source, representation) for source in sources]
    if not any(source.kind in ("reg", "special") for source in sources):
        values[0] = w.read_array(sources[0], representation)
    if read_as:
        values = [read_as.format(value) for value in values]
    w.write(i.operands[0].value, result or representation, expression.format(*values), w.union(sources))


# Integers and floats

ARITHMETIC = {"add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}"}


@operation("add", "sub", "mul", "fma")
def arithmetic(w: Writer, i: Instruction, parts: list[str]) -> None:
    name, kind = parts[0], parts[-1]
    if ROUNDED_OTHERWISE & set(parts):
        raise UnknownInstruction(i.opcode)
    if name == "mul" and parts[1] == "wide":
        return wide(w, i, parts, "({0} * {1})")
    if name == "mul" and parts[1] == "hi":
        return high_half(w, i, parts)
    text = "fma({0}, {1}, {2})" if name == "fma" else f"({ARITHMETIC[name]})"
    if kind == "f32x2":
        return pairs(w, i, parts, text)
    if kind in ("bf16", "f16"):
        return mixed(w, i, parts, text)
    if name == "fma" and (kind != "f32" or parts[1] != "rn"):
        raise UnknownInstruction(i.opcode)
    if "ftz" in parts:
        return elementwise(
            w, i, type_of(kind), f"flush{text}" if name != "fma" else f"flush({text})", read_as="flush({})"
        )
    elementwise(w, i, type_of(kind), text)


def wide(w: Writer, i: Instruction, parts: list[str], expression: str) -> None:
    """The product of two integers in twice their bits; a third operand has these already."""
    narrow = type_of(parts[-1])
    double = f"{narrow[0]}{2 * itemsize(narrow)}"
    factors = [f"np.asarray({w.read(operand, narrow)}, {double.upper()})" for operand in i.operands[1:3]]
    addends = [w.read(operand, double) for operand in i.operands[3:]]
    w.write(i.operands[0].value, double, expression.format(*factors, *addends), w.union(i.operands[1:]))


def high_half(w: Writer, i: Instruction, parts: list[str]) -> None:
    if parts[2] not in ("u32", "s32"):
        raise UnknownInstruction(i.opcode)
    kind = type_of(parts[2])
    double = f"{kind[0]}8".upper()
    elementwise(w, i, kind, f"(({{0}}.astype({double}) * {double}({{1}})) >> {double}(32)).astype({kind.upper()})")


def pairs(w: Writer, i: Instruction, parts: list[str], expression: str) -> None:
    """Two float32 in a 64-bit register, each for itself."""
    if "ftz" in parts:
        raise UnknownInstruction(i.opcode)
    values = [f"np.ascontiguousarray(np.broadcast_to({w.read(o, 'u8')}, m.n)).view(F4)" for o in i.operands[1:]]
    w.write(i.operands[0].value, "u8", f"{expression.format(*values)}.view(U8)", w.union(i.operands[1:]))


def mixed(w: Writer, i: Instruction, parts: list[str], expression: str) -> None:
    """Float32 from 16-bit factors; the last operand of a fma, and the second one of a sum, is float32."""
    if parts[1:-1] != ["rn", "f32"]:
        raise UnknownInstruction(i.opcode)
    narrow = 2 if parts[0] == "fma" else 1
    values = [widened(w, o, parts[-1]) if n < narrow else w.read(o, "f4") for n, o in enumerate(i.operands[1:])]
    w.write(i.operands[0].value, "f4", expression.format(*values), w.union(i.operands[1:]))


def widened(w: Writer, operand: Operand, kind: str) -> str:
    """A 16-bit float as float32."""
    return f"bf16_to_f32({w.read(operand, 'u2')})" if kind == "bf16" else f"{w.read(operand, 'f2')}.astype(F4)"


@operation("mad")
def multiply_add(w: Writer, i: Instruction, parts: list[str]) -> None:
    if parts[1] == "wide":
        return wide(w, i, parts, "({0} * {1} + {2})")
    if parts[1] != "lo":
        raise UnknownInstruction(i.opcode)
    elementwise(w, i, type_of(parts[-1]), "({0} * {1} + {2})")


@operation("div")
def division(w: Writer, i: Instruction, parts: list[str]) -> None:
    if parts[-1] != "f32":
        return elementwise(w, i, type_of(parts[-1]), "divide({0}, np.asarray({1}))")
    if "ftz" in parts:
        raise UnknownInstruction(i.opcode)
    elementwise(w, i, "f4", "({0} / {1})" if parts[1] == "rn" else "m.approximate.divided({0}, {1})")


@operation("rem")
def remainder(w: Writer, i: Instruction, parts: list[str]) -> None:
    elementwise(w, i, type_of(parts[-1]), "remainder({0}, np.asarray({1}))")


@operation("neg", "abs", "not")
def unary(w: Writer, i: Instruction, parts: list[str]) -> None:
    if "ftz" in parts:
        raise UnknownInstruction(i.opcode)
    elementwise(w, i, type_of(parts[-1]), {"neg": "(-{0})", "abs": "np.abs({0})", "not": "(~{0})"}[parts[0]])


@operation("min", "max")
def extremum(w: Writer, i: Instruction, parts: list[str]) -> None:
    """Of two or three. Without ``.NaN`` the number wins over NaN."""
    if {"ftz", "xorsign", "relu"} & set(parts):
        raise UnknownInstruction(i.opcode)
    kind = type_of(parts[-1])
    function = f"np.f{parts[0]}" if kind[0] == "f" and "NaN" not in parts else f"np.{parts[0]}imum"
    text = f"{function}({{0}}, {{1}})"
    elementwise(w, i, kind, text if len(i.operands) == 3 else f"{function}({text}, {{2}})")


@operation("ex2", "lg2", "rsqrt", "rcp", "sqrt", "tanh")
def approximate(w: Writer, i: Instruction, parts: list[str]) -> None:
    if parts[-1] != "f32" or "approx" not in parts:
        raise UnknownInstruction(i.opcode)
    flushed = f"m.approximate.flushed({parts[0]!r}, {{0}})"
    elementwise(w, i, "f4", flushed if "ftz" in parts else f"m.approximate.{parts[0]}({{0}})")


# Bits


@operation("and", "or", "xor")
def logic(w: Writer, i: Instruction, parts: list[str]) -> None:
    operator = {"and": "&", "or": "|", "xor": "^"}[parts[0]]
    if parts[-1] != "pred" or operator == "^":
        return elementwise(w, i, type_of(parts[-1]), f"({{0}} {operator} {{1}})")
    a, b = (w.read(operand, "b1") for operand in i.operands[1:])
    undef_a, undef_b = (w.undef_of(operand) for operand in i.operands[1:])
    undef = None
    if undef_a or undef_b:
        undef = w.fresh("u")
        w.emit(f"{undef} = undef_of_logic({operator == '&'}, {a}, {b}, {undef_a}, {undef_b})")
    w.write(i.operands[0].value, "b1", f"({a} {operator} {b})", undef)


@operation("shl", "shr")
def shift(w: Writer, i: Instruction, parts: list[str]) -> None:
    kind = type_of(parts[-1])
    target, value, by = i.operands
    x = w.read_array(value, kind)
    if by.kind == "int" and 0 <= by.value < 8 * itemsize(kind):
        text = f"({x} {'<<' if parts[0] == 'shl' else '>>'} {w.constant(by.value, kind)})"
    else:
        text = f"shift_{'left' if parts[0] == 'shl' else 'right'}({x}, {w.read(by, 'u4')})"
    w.write(target.value, kind, text, w.union([value, by]))


@operation("bfe")
def bit_field(w: Writer, i: Instruction, parts: list[str]) -> None:
    if parts[1] not in ("u32", "s32"):
        raise UnknownInstruction(i.opcode)
    elementwise(w, i, "u4", f"{'signed_' if parts[1] == 's32' else ''}bit_field({{0}}, {{1}}, {{2}})")


@operation("popc")
def population(w: Writer, i: Instruction, parts: list[str]) -> None:
    elementwise(w, i, type_of(parts[-1]), "population({0})", "u4")


@operation("prmt")
def permute(w: Writer, i: Instruction, parts: list[str]) -> None:
    target, a, b, selector = i.operands
    if selector.kind != "int" or len(parts) > 2:
        raise UnknownInstruction(i.opcode)
    text = f"permute_bytes({w.read_array(a, 'u4')}, {w.read(b, 'u4')}, {selector.value})"
    w.write(target.value, "u4", text, w.union([a, b]))


@operation("lop3")
def logic_of_three(w: Writer, i: Instruction, parts: list[str]) -> None:
    """The operands' function by its table of truth: bit n of it is the result for the operands' bits n."""
    target, *sources, table = i.operands
    a, b, c = (w.read_array(operand, "u4") for operand in sources)
    terms = [
        "(" + " & ".join(x if row >> (2 - n) & 1 else f"~{x}" for n, x in enumerate((a, b, c))) + ")"
        for row in range(8)
        if table.value >> row & 1
    ]
    w.write(target.value, "u4", " | ".join(terms) or f"np.zeros_like({a})", w.union(sources))


# Comparison and choice

COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
COMPARISONS |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
OR_NAN = {"ltu": "~({0} >= {1})", "leu": "~({0} > {1})", "gtu": "~({0} <= {1})", "geu": "~({0} < {1})"}
OR_NAN |= {"neu": "({0} != {1})", "num": "~(np.isnan({0}) | np.isnan({1}))", "nan": "(np.isnan({0}) | np.isnan({1}))"}


@operation("setp")
def compare(w: Writer, i: Instruction, parts: list[str]) -> None:
    """NaN makes a comparison False, unless its name ends in u."""
    if len(parts) != 3 or parts[1] not in COMPARISONS.keys() | OR_NAN.keys():
        raise UnknownInstruction(i.opcode)
    comparison, kind = parts[1], type_of(parts[2])
    if comparison == "ne" and kind[0] == "f":
        text = "(({0} < {1}) | ({0} > {1}))"
    else:
        text = OR_NAN.get(comparison) or f"({{0}} {COMPARISONS[comparison]} {{1}})"
    elementwise(w, i, kind, text, "b1")


@operation("selp")
def select(w: Writer, i: Instruction, parts: list[str]) -> None:
    kind = type_of(parts[1])
    target, a, b, predicate = i.operands
    mask = w.read(predicate, "b1")
    undef = w.undef_of_choice(mask, w.undef_of(a), w.undef_of(b))
    if undef_mask := w.undef_of(predicate):
        joined = w.fresh("u")
        w.emit(f"{joined} = either({undef}, {undef_mask})")
        undef = joined
    w.write(target.value, kind, f"np.where({mask}, {w.read(a, kind)}, {w.read(b, kind)})", undef)


# Moves and conversions


@operation("mov")
def move(w: Writer, i: Instruction, parts: list[str]) -> None:
    target, source = i.operands
    kind = type_of(parts[-1])
    if target.kind == "vector":
        return unpack(w, i, kind)
    if source.kind == "vector":
        return pack(w, i, kind)
    held = held_as(target.value)
    w.write(target.value, held, w.read_array(source, held), w.undef_of(source))


def unpack(w: Writer, i: Instruction, kind: str) -> None:
    target, source = i.operands
    whole, part = f"u{kind[1]}", f"u{itemsize(kind) // len(target.value)}"
    value, undef = w.read(source, whole), w.undef_of(source)
    for index, register in enumerate(target.value):
        if register.kind != "sink":
            shifted = f"({value} >> {whole.upper()}({8 * itemsize(part) * index}))"
            w.write(register.value, part, f"{shifted}.astype({part.upper()})", undef)


def pack(w: Writer, i: Instruction, kind: str) -> None:
    target, source = i.operands
    whole, part = f"u{kind[1]}", f"u{itemsize(kind) // len(source.value)}"
    terms = [
        f"(np.asarray({w.read(operand, part)}, {whole.upper()}) << {whole.upper()}({8 * itemsize(part) * index}))"
        for index, operand in enumerate(source.value)
    ]
    w.write(target.value, whole, " | ".join(terms), w.union(source.value))


MODES = frozenset({"rn", "rz", "rm", "rp", "rzi", "rni", "rmi", "rpi", "ftz", "sat", "relu"})


@operation("cvt")
def convert(w: Writer, i: Instruction, parts: list[str]) -> None:
    target, *sources = i.operands
    modes = [part for part in parts[1:] if part in MODES]
    kinds = [part for part in parts[1:] if part not in MODES]
    if {"sat", "relu", "ftz", "rz", "rm", "rp"} & set(modes) or len(kinds) != 2:
        raise UnknownInstruction(i.opcode)
    undef = w.union(sources)
    match kinds:
        case ["bf16x2" | "f16x2", "f32"]:
            high, low = (f"{kinds[0][:-2]}_bits({w.read(source, 'f4')})" for source in sources)
            w.write(target.value, "u4", f"pack({low}, {high})", undef)
        case ["bf16" | "f16", "f32"]:
            w.write(target.value, "u2", f"{kinds[0]}_bits({w.read(sources[0], 'f4')})", undef)
        case ["f32", "bf16" | "f16"]:
            w.write(target.value, "f4", widened(w, sources[0], kinds[1]), undef)
        case [to, origin]:
            convert_number(w, i, type_of(to), type_of(origin), modes, undef)


def convert_number(w: Writer, i: Instruction, to: str, origin: str, modes: list[str], undef: str | None) -> None:
    target, source = i.operands
    held = held_as(target.value)
    if origin[0] == "f" and to[0] != "f":
        rounding = next(mode for mode in modes if mode.endswith("i"))
        return w.write(target.value, to, f"to_integer({w.read(source, origin)}, {to.upper()}, {rounding!r})", undef)
    if origin[0] == "f":
        value = w.read_array(source, origin)
    else:  # an integer may be the low part of its register
        value = f"{w.read_array(source, held_as(source.value))}.astype(U{origin[1]}).view({origin.upper()})"
    if to[0] != "f" and itemsize(to) < itemsize(held):
        padded = f"{to[0]}{held[1]}"
        return w.write(target.value, padded, f"{value}.astype({to.upper()}).astype({padded.upper()})", undef)
    w.write(target.value, to, f"{value}.astype({to.upper()})", undef)
