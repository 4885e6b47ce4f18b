"""The report: rows measured in a child process, the JSON file that keeps them, tables made from it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.static.budgets import allowed
from benchmarks.static.loop_cost import Row
from benchmarks.static.roofline import DEVICES, EXP_PER_CLOCK, ISSUE_SLOTS_PER_CLOCK, LATENCY, Prediction
from benchmarks.static.specialisations import Specialisation

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True)
class Report:
    triton: str
    command: str
    rows: list[Row]


def measure(
    architectures: Sequence[str],
    specialisations: Sequence[Specialisation] | None = None,
    max_registers: int | None = None,
) -> Report:
    """The report on every kernel for every architecture, from a child process that has the compiler.

    Args:
        architectures: of :data:`ARCHITECTURES`.
        specialisations: None for all that users' calls compile.
        max_registers: per thread, as the compiler's ``maxnreg``; None leaves the choice to it.

    Raises:
        RuntimeError: a kernel does not compile; the message ends with the compiler's.
    """
    request = {
        "architectures": architectures,
        "specialisations": specialisations and [asdict(spec) for spec in specialisations],
        "max_registers": max_registers,
    }
    # The interpreter would replace the compiler, and loops are named by line info.
    unwanted = ("TRITON_INTERPRET", "TRITON_DISABLE_LINE_INFO")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    with tempfile.TemporaryDirectory() as cache:
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.static"],
            input=json.dumps(request),
            env={**environment, "TRITON_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=False,
        )
    if child.returncode:
        raise RuntimeError(f"cross-compilation failed:\n{child.stderr[-4000:]}")
    return from_json(child.stdout)


def to_json(report: Report) -> str:
    return json.dumps(asdict(report), indent=1)


def from_json(text: str) -> Report:
    content = json.loads(text)
    for row in content["rows"]:
        row["load_bits"], row["store_bits"] = tuple(row["load_bits"]), tuple(row["store_bits"])
        row["predicted"] = {name: Prediction(**shares) for name, shares in row["predicted"].items()}
    return Report(content["triton"], content["command"], [Row(**row) for row in content["rows"]])


HEADER: tuple[str, ...] = (
    "kernel",
    "arch",
    "registers",
    "spills",
    "shared",
    "loop",
    "instructions / element, of the budget",
    "exp / element",
    "load bits",
    "store bits",
    "shuffles",
    "barriers",
    "KB in flight / SM",
    "share of bandwidth (issue, exp unit busy)",
)

ASSUMPTIONS = (
    ("GPU", "SMs", "GHz, assumed", "TB/s, data sheet", "TB/s, 90 % of it"),
    *(
        (
            device.name,
            str(device.num_sms),
            f"{device.clock:.2f}",
            f"{device.data_sheet_bandwidth:.2f}",
            f"{device.bandwidth:.2f}",
        )
        for device in DEVICES
    ),
)

MODEL = f"""\
The share of bandwidth is a model: the least of 1, 1 / issue, 1 / exp unit, and the bytes in flight over what a latency
of {LATENCY} ns takes at full bandwidth. An SM issues {ISSUE_SLOTS_PER_CLOCK} instructions, slower integer ones counted
alike, and {EXP_PER_CLOCK} exp operations per clock (CUDA programming guide); of the data sheet's bandwidth a copy was
measured to reach 90 %, on an H200; clocks and latency under load are assumed."""


def cells(row: Row) -> tuple[str, ...]:
    def widths(bits: tuple[int, ...]) -> str:
        return "/".join(map(str, bits)) or "-"

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    predicted = (
        f"{device} {shares.bandwidth:.0%} ({shares.issue:.0%}, {shares.exp:.0%})"
        for device, shares in row.predicted.items()
    )
    return (
        row.kernel,
        row.arch,
        str(row.registers),
        str(row.spills),
        str(row.shared),
        row.loop or "none",
        number(row.instructions_per_element) + (f" of {budget:.1f}" if (budget := allowed(row)) else ""),
        number(row.exp_per_element),
        widths(row.load_bits),
        widths(row.store_bits),
        str(row.shuffles),
        str(row.barriers),
        f"{row.bytes_in_flight / 1024:.0f}" if row.bytes_in_flight else "-",
        "; ".join(predicted) or "-",
    )


def columns(lines: Sequence[tuple[str, ...]]) -> str:
    """For a terminal."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def table(report: Report) -> str:
    """The rows and the model's assumptions; what a row shares with the one above is left blank."""
    lines: list[tuple[str, ...]] = [HEADER]
    of_kernel: tuple[str, ...] = ()
    for line in map(cells, report.rows):
        lines.append(("",) * 5 + line[5:] if line[:5] == of_kernel else line)
        of_kernel = line[:5]
    return f"{columns(lines)}\n\n{MODEL}\n{columns(ASSUMPTIONS)}"


def markdown(path: Path) -> str:
    """A file's loops over the vocabulary as a table, where they come from, and the model's assumptions.

    A cell of an architecture: instructions per element, and KB in flight per SM.
    """

    def piped(header: tuple[str, ...], *lines: tuple[str, ...]) -> str:
        return "\n".join(f"| {' | '.join(line)} |" for line in (header, ("---",) * len(header), *lines))

    report = from_json(path.read_text())
    architectures = list(dict.fromkeys(row.arch for row in report.rows))
    loops: dict[tuple[str, str], dict[str, Row]] = {}
    for row in report.rows:
        if row.instructions_per_element is not None:
            loops.setdefault((row.kernel, row.loop), {})[row.arch] = row
    lines = []
    for (kernel, loop), on in loops.items():
        shares = {device: share.bandwidth for row in on.values() for device, share in row.predicted.items()}
        counts = (_count(on[arch]) if arch in on else "" for arch in architectures)
        lines.append((kernel, loop, *counts, ", ".join(f"{device} {share:.0%}" for device, share in shares.items())))
    header = "kernel", "loop", *architectures, "predicted share of bandwidth"
    spills = sum(row.spills for row in report.rows)
    source = (
        f"Instructions per element, KB in flight per SM. Bytes spilt by all of them: {spills}. "
        f"`{path.name}`: `{report.command}`, triton {report.triton}. {MODEL}"
    )
    return f"{piped(header, *lines)}\n\n{source}\n\n{piped(*ASSUMPTIONS)}"


def _count(row: Row) -> str:
    in_flight = f", {row.bytes_in_flight / 1024:.0f}" if row.bytes_in_flight else ""
    return f"{row.instructions_per_element:.2f}{in_flight}"
