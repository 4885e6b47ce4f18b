"""A specialisation -> machine code -> the cost of its loops, without a GPU.

Must run without ``TRITON_INTERPRET``, which replaces the compiler.
"""

import importlib
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.static import amdgcn, nvidia
from benchmarks.static.loop_cost import LoopCost, loop_costs
from benchmarks.static.machine_code import MachineCode
from benchmarks.static.source_lines import number_locations
from benchmarks.static.specialisations import Specialisation

POINTERS = {"target_ids_ptr": "i64", "loss_mask_ptr": "i1", "desirable_ptr": "i1", "cu_seqlens_ptr": "i32"}
"""Element types of the pointers that are neither logits nor float32."""


def measured(spec: Specialisation, arch: str) -> list[LoopCost]:
    try:
        return loop_costs(spec, arch, compile_for(spec, arch))
    except Exception as error:  # the compiler's own errors cannot be sent to another process
        raise RuntimeError(f"{spec.name}, for {arch}: {error}") from None


def source(spec: Specialisation) -> ASTSource:
    """The kernel with every argument's type, by the house's names: ``…_ptr``, sizes in capitals, ``stride_…``."""
    module, name = spec.kernel.split(":")
    kernel = getattr(importlib.import_module(module), name)
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    multiples_of_16: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(kernel.params):
        argument = parameter.name
        if parameter.is_constexpr:
            signature[argument] = "constexpr"
            constants[(index,)] = spec.constants.get(argument, False)
            continue
        signature[argument] = argument_type(argument, spec.dtype, parameter.annotation_type)
        specialised = not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
        if specialised and signature[argument] != "fp32":
            multiples_of_16[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=multiples_of_16)


def argument_type(argument: str, dtype: str, annotation: str | None) -> str:
    if argument.endswith("_ptr"):
        return "*" + (dtype if "logits" in argument else POINTERS.get(argument, "fp32"))
    return annotation or ("i32" if argument.isupper() or argument.startswith("stride_") else "fp32")


def numbering_stages(*arguments: Any) -> tuple[str, str] | None:
    """Triton's hook: called without arguments for its part of the cache's key, else to change the stages."""
    if not arguments:
        return "numbered locations", "numbered locations"
    _, stages, *_ = arguments
    make_llir = stages["llir"]
    stages["llir"] = lambda src, metadata: number_locations(make_llir(src, metadata))
    return None


def compile_for(spec: Specialisation, arch: str) -> MachineCode:
    knobs.runtime.add_stages_inspection_hook = numbering_stages  # type: ignore[assignment]
    options: dict[str, int | None] = {"num_warps": spec.num_warps}
    if arch.startswith("gfx"):
        compiled = triton.compile(source(spec), target=GPUTarget("hip", arch, 64), options=options)
        return amdgcn.parse(compiled.asm["amdgcn"], compiled.metadata.shared)
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    options["maxnreg"] = spec.max_registers
    compiled = triton.compile(source(spec), target=target, options=options)
    return nvidia.disassemble(compiled.asm["cubin"], compiled.asm["ptx"], compiled.metadata.shared)
