"""``python -m benchmarks static``: compile every kernel without a GPU, and hold loops and launches to their budgets."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import environment, source_hash
from benchmarks.results import write
from benchmarks.static import budgets, launch_budgets, launch_table, loop_table, loss_launches
from benchmarks.static.launch_cost import LaunchCost
from benchmarks.static.loop_cost import LoopCost
from benchmarks.static.loop_table import ARCHITECTURES


@dataclass(frozen=True)
class Part:
    """One kind of rows."""

    kind: type[Any]
    measure: Callable[[Sequence[str]], list[Any]]  # on architectures
    broken: Callable[[list[Any]], list[str]]  # a line for each budget that is exceeded
    table: Callable[[list[Any]], str]
    suffix: str  # of its file's name


COMPILED_CODE = ("kernels", "benchmarks/static")
"""The code that the rows of loops depend on, beside the version of Triton."""

PARTS = {
    "loops": Part(LoopCost, loop_table.measure, budgets.broken, loop_table.table, ""),
    "launches": Part(LaunchCost, launch_table.measure, launch_budgets.broken, launch_table.table, "-launches"),
    "losses": Part(
        loss_launches.LossLaunches,
        lambda architectures: loss_launches.measure(),
        loss_launches.broken,
        loss_launches.table,
        "-losses",
    ),
}


def main(arguments: list[str]) -> None:
    """Exits with 1 where a budget is exceeded or a part could not be counted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks static", description=__doc__)
    parser.add_argument("--arch", nargs="+", default=["sm_90"], choices=ARCHITECTURES)
    parser.add_argument("--part", nargs="+", default=[*PARTS], choices=[*PARTS], help="without it, all")
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="also write loops to this file, the others beside it: FILE-launches.csv",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all in one file, as JSON")
    options = parser.parse_args(arguments)
    facts = environment(torch.device("cpu")) | {"compiled": source_hash(folders=COMPILED_CODE)}
    print(f"triton {facts['triton']}")
    over: list[str] = []
    counted: dict[str, list[Any]] = {}
    for name in options.part:
        part = PARTS[name]
        try:
            rows = counted[name] = part.measure(options.arch)
        except RuntimeError as error:  # a kernel that does not compile, or an instruction that is not emulated
            over.append(f"{name} were not counted: {error}")
            continue
        over += part.broken(rows)
        print(f"\n{part.table(rows)}", flush=True)
        if options.csv:
            write(options.csv.with_stem(f"{options.csv.stem}{part.suffix}"), part.kind, facts, rows)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: [asdict(row) for row in rows] for name, rows in counted.items()}
        options.json.write_text(json.dumps({**facts, **rows}, indent=1) + "\n")
    print("\n" + ("\n".join(["Over budget:", *over]) if over else "Every budget is met (benchmarks/static)."))
    if over:
        sys.exit(1)
