"""The loops of every kernel, cross-compiled without a GPU, and the tables of them."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import cells, read
from benchmarks.static.budgets import allowed
from benchmarks.static.loop_cost import LoopCost
from benchmarks.static.processes import new_processes
from benchmarks.static.roofline import DEVICES, EXP_PER_CLOCK, ISSUE_SLOTS_PER_CLOCK, LATENCY
from benchmarks.static.specialisations import Specialisation, specialisations
from benchmarks.tables import Line, columns, piped

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")


def measure(architectures: Sequence[str]) -> list[LoopCost]:
    """The loops of every kernel that users' calls compile, on each of :data:`ARCHITECTURES` that is asked for."""
    return compiled([(spec, arch) for arch in architectures for spec in specialisations(arch)])


def compiled(work: Sequence[tuple[Specialisation, str]]) -> list[LoopCost]:
    """The loops of specialisations, each for its architecture, from new processes, which have the compiler.

    Raises:
        RuntimeError: a kernel does not compile; the message ends with the compiler's.
    """
    from benchmarks.static.compile import measured  # needs triton, which ``markdown`` does without

    with new_processes() as pool:
        futures = [pool.submit(measured, spec, arch) for spec, arch in work]
        return [row for future in futures for row in future.result()]


ASSUMPTIONS = [
    {
        "GPU": device.name,
        "SMs": str(device.num_sms),
        "GHz, assumed": f"{device.clock:.2f}",
        "TB/s, data sheet": f"{device.data_sheet_bandwidth:.2f}",
        "TB/s, 90 % of it": f"{device.bandwidth:.2f}",
    }
    for device in DEVICES
]

MODEL = f"""\
The share of bandwidth is a model: the least of 1, 1 / issue, 1 / exp unit, and the bytes in flight over those of a
latency of {LATENCY} ns at full bandwidth. An SM issues {ISSUE_SLOTS_PER_CLOCK} instructions, slower integer ones
counted alike, and {EXP_PER_CLOCK} exp operations per clock (CUDA programming guide); of the data sheet's bandwidth a
copy is taken to reach 90 %, as reported of an H200; clocks and latency under load are assumed."""


def table(rows: Sequence[LoopCost]) -> str:
    """The rows beside their budgets, and the model's assumptions, for a terminal."""
    lines = [{**cells(row), "budget": str(allowed(row) or "")} for row in rows]
    return f"{columns(lines)}\n\n{MODEL}\n{columns(ASSUMPTIONS)}"


def markdown(path: Path, name: str, words: Sequence[str] = ()) -> str:
    """A file's loops as a table, where they come from, and the model's assumptions.

    A cell of an architecture: instructions per element, and KB in flight per SM.
    """
    facts, rows = read(path, LoopCost)
    loops: dict[tuple[str, str], dict[str, LoopCost]] = {}
    for row in rows:
        if row.instructions_per_element is not None:
            loops.setdefault((row.kernel, row.loop), {})[row.arch] = row
    lines: list[Line] = []
    for (kernel, loop), on in loops.items():
        counts = {arch: _count(on[arch]) if arch in on else "" for arch in dict.fromkeys(row.arch for row in rows)}
        shares = {gpu: share for row in on.values() for gpu, share in zip(row.gpus, row.bandwidth, strict=True)}
        predicted = ", ".join(f"{gpu} {share:.0%}" for gpu, share in shares.items())
        lines.append({"kernel": kernel, "loop": loop, **counts, "predicted share of bandwidth": predicted})
    spills = sum(row.spills for row in rows)
    source = (
        f"Instructions per element, KB in flight per SM. Bytes spilt by all of them: {spills}. "
        f"`{name}`: `{facts['command']}`, triton {facts['triton']}. {MODEL}"
    )
    return f"{piped(lines)}\n\n{source}\n\n{piped(ASSUMPTIONS)}"


def _count(row: LoopCost) -> str:
    in_flight = f", {row.bytes_in_flight / 1024:.0f}" if row.bytes_in_flight else ""
    return f"{row.instructions_per_element:.2f}{in_flight}"
