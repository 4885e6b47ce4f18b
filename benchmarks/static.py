"""Cross-compile every kernel, without a GPU, and read the machine code's resources.

Must run without ``TRITON_INTERPRET``, which replaces the compiler: ``python -m benchmarks static`` starts a child.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


@dataclass(frozen=True)
class Specialisation:
    """One kernel as a user's call compiles it: pointer dtypes, and what is known when compiling."""

    kernel: str
    pointers: dict[str, str]
    constants: dict[str, int | bool]
    num_warps: int
    aligned: bool = True
    """Whether the vocabulary and the strides are multiples of 16."""

    @property
    def name(self) -> str:
        dtype = self.pointers.get("logits_ptr", "fp32")
        flags = "".join(f" {k}={v}" for k, v in self.constants.items() if k.isupper() and not k.startswith("BLOCK"))
        return f"{self.kernel} {dtype}{flags}{'' if self.aligned else ' odd vocabulary'}"


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel.

    Attributes:
        registers: per thread.
        spills: bytes per thread.
        shared: bytes of shared memory per block.
        load_bits, store_bits: the widest access to global memory by one thread.
        loops: instructions per element of each loop over a row of logits, in the order of the machine code.
    """

    kernel: str
    arch: str
    registers: int
    spills: int
    shared: int
    load_bits: int
    store_bits: int
    loops: tuple[float, ...]


def specialisations() -> Iterator[Specialisation]:
    from humanline_kernels.launch import TOKEN_TILES, vocabulary_tiles

    tokens = {"target_ids_ptr": "i64", "loss_mask_ptr": "i1"}
    unit_stride = {"stride_logits_v": 1}
    for dtype, itemsize, aligned in (("bf16", 2, True), ("bf16", 2, False), ("fp16", 2, True), ("fp32", 4, True)):
        tiles = vocabulary_tiles(128256, itemsize)
        num_warps = tiles.pop("num_warps")
        for has_reference in (False, True):
            yield Specialisation(
                "token_logp.token_logp_forward_kernel",
                {"logits_ptr": dtype, "ref_logits_ptr": dtype, **tokens},
                {**tiles, **unit_stride, "stride_ref_logits_v": 1, "HAS_REFERENCE": has_reference},
                num_warps,
                aligned,
            )
        yield Specialisation(
            "token_logp.token_logp_backward_kernel",
            {"logits_ptr": dtype, "dlogits_ptr": dtype, **tokens},
            {**tiles, **unit_stride, "EXACT": dtype == "fp32"},
            num_warps,
            aligned,
        )
    for loss in ("dpo", "kto", "grpo"):
        yield Specialisation(
            f"{loss}_loss.{loss}_loss_kernel",
            {"loss_mask_ptr": "i1", "desirable_ptr": "i1"},
            {"BLOCK_T": TOKEN_TILES["BLOCK_T"]},
            TOKEN_TILES["num_warps"],
        )


ELEMENT_BITS = {"bf16": 16, "fp16": 16, "fp32": 32}

FLOAT_SCALARS = {
    "beta",
    "label_smoothing",
    "desirable_weight",
    "undesirable_weight",
    "epsilon",
    "epsilon_high",
    "log_epsilon_P",
    "log_epsilon_R",
}


def compile_for(spec: Specialisation, arch: str, max_registers: int | None) -> bytes:
    """The machine code (cubin) of one specialisation."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = spec.kernel.split(".")
    kernel = getattr(importlib.import_module(f"humanline_kernels.{module}"), name)
    signature, divisible = {}, {}
    for index, argument in enumerate(kernel.arg_names):
        if argument in spec.constants:
            signature[argument] = "constexpr"
        elif argument.endswith("_ptr"):
            signature[argument] = "*" + spec.pointers.get(argument, "fp32")
            divisible[(index,)] = [["tt.divisibility", 16]]
        elif argument in FLOAT_SCALARS:
            signature[argument] = "fp32"
        else:
            signature[argument] = "i32"
            if spec.aligned and (argument == "V" or argument.startswith("stride_")):
                divisible[(index,)] = [["tt.divisibility", 16]]
    constants = {(kernel.arg_names.index(k),): v for k, v in spec.constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    options = {"num_warps": spec.num_warps, "maxnreg": max_registers}
    return triton.compile(source, target=target, options=options).asm["cubin"]


def resources(spec: Specialisation, arch: str, max_registers: int | None) -> Resources:
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compile_for(spec, arch, max_registers))
        file.flush()
        usage = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        sass = subprocess.run([cuobjdump, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    figures = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    spills = figures["LOCAL"] + figures["STACK"] + 4 * len(re.findall(r"\b(?:STL|LDL)\b", sass))
    return Resources(
        spec.name,
        arch,
        registers=figures["REG"],
        spills=spills,
        shared=figures["SHARED"],
        load_bits=widest("LDG", sass),
        store_bits=widest("STG", sass),
        loops=instructions_per_element(sass, ELEMENT_BITS[spec.pointers.get("logits_ptr", "fp32")]),
    )


def widest(instruction: str, sass: str) -> int:
    """Bits of the widest access of one kind; without a width in its name, an instruction moves 32."""
    names = set(re.findall(rf"\b{instruction}[A-Z0-9.]*", sass))
    return max(
        (int(width[1]) if (width := re.search(r"\.[US]?(8|16|64|128|256)\b", name)) else 32 for name in names),
        default=0,
    )


def instructions_per_element(sass: str, element_bits: int) -> tuple[float, ...]:
    """Of each loop, found by its jump back: its instructions over the elements that it loads (or stores, if it only
    stores)."""
    listing = [
        (int(address, 16), text) for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*[A-Z][^;]*);", sass)
    ]
    position = {address: index for index, (address, _) in enumerate(listing)}
    loops = []
    for index, (address, text) in enumerate(listing):
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address and int(jump[1], 16) in position:
            body = [text for _, text in listing[position[int(jump[1], 16)] : index + 1]]
            moved = [sum(widest(kind, line) for line in body) for kind in ("LDG", "STG")]
            elements = (moved[0] or moved[1]) / element_bits
            if elements:
                loops.append(round(len(body) / elements, 2))
    return tuple(loops)


def report(architectures: list[str], max_registers: int | None = None) -> list[Resources]:
    """Resources of every kernel on every architecture, measured in a child process that has the compiler.

    Args:
        architectures: of :data:`ARCHITECTURES`.
        max_registers: per thread, as the compiler's ``maxnreg``; None leaves the choice to it.

    Raises:
        RuntimeError: a kernel does not compile; the message ends with the compiler's.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.static", str(max_registers or 0), *architectures],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(f"cross-compilation failed:\n{child.stderr[-4000:]}")
    return [Resources(**{**row, "loops": tuple(row["loops"])}) for row in json.loads(child.stdout)]


if __name__ == "__main__":
    max_registers, *architectures = sys.argv[1:]
    rows = [resources(spec, arch, int(max_registers) or None) for arch in architectures for spec in specialisations()]
    print(json.dumps([asdict(row) for row in rows]))
