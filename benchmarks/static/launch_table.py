"""The whole launches of the kernels, compiled and emulated without a GPU, and the tables of them."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import cells, read
from benchmarks.static.launch_budgets import PASSES, allowed
from benchmarks.static.launch_cost import LaunchCost
from benchmarks.static.processes import new_processes
from benchmarks.tables import Line, columns, piped


def measure(architectures: Sequence[str]) -> list[LaunchCost]:
    """Launches on NVIDIA's architectures, from new processes, which have the compiler; AMD's code is not emulated.

    Raises:
        RuntimeError: a launch was not run, or has a finding; the message says why.
    """
    from benchmarks.static.launches import measured  # needs triton, which ``markdown`` does without

    with new_processes() as pool:
        futures = [pool.submit(measured, arch) for arch in architectures if arch.startswith("sm_")]
        return [row for future in futures for row in future.result()]


def table(rows: Sequence[LaunchCost]) -> str:
    """The rows beside their budgets, for a terminal."""
    return columns([{**cells(row), "budget": str(allowed(row))} for row in rows])


def markdown(path: Path, name: str, words: Sequence[str] = ()) -> str:
    """A file's launches as a table, and where they come from."""
    facts, rows = read(path, LaunchCost)
    launches: dict[tuple[str, int], dict[str, LaunchCost]] = {}
    for row in rows:
        launches.setdefault((row.launch, row.V), {})[row.arch] = row
    lines: list[Line] = []
    for (launch, V), on in sorted(launches.items(), key=lambda item: [*PASSES].index(item[0][0])):
        counts = {
            f"{arch} (budget)": f"{row.instructions_per_element:.2f} ({allowed(row):.2f})" for arch, row in on.items()
        }
        read_, written = (max(getattr(row, side) for row in on.values()) for side in ("passes_read", "passes_written"))
        passes = {"read (budget)": f"{read_:.2f} ({PASSES[launch][0]})"}
        passes |= {"written (budget)": f"{written:.2f} ({PASSES[launch][1]})"}
        lines.append({"launch": launch, "V": str(V), **counts, **passes})
    source = f"`{name}`: `{facts['command']}`, triton {facts['triton']}."
    return f"{piped(lines)}\n\n{source}"
