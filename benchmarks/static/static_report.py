"""``python -m benchmarks static``: compile every kernel without a GPU, and hold loops and launches to their budgets."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.machine import environment
from benchmarks.results import write
from benchmarks.static import budgets, launch_budgets, launch_table, loop_table
from benchmarks.static.launch_cost import LaunchCost
from benchmarks.static.loop_cost import LoopCost
from benchmarks.static.loop_table import ARCHITECTURES


def main(arguments: list[str]) -> None:
    """Exits with 1 where a budget is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks static", description=__doc__)
    parser.add_argument("--arch", nargs="+", default=["sm_90"], choices=ARCHITECTURES)
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="also write the loops to this file, the launches to FILE-launches.csv"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="both in one file, as JSON")
    options = parser.parse_args(arguments)
    facts = environment(torch.device("cpu"))
    loops = loop_table.measure(options.arch)
    over = budgets.broken(loops)
    try:
        launches = launch_table.measure(options.arch)
        over += launch_budgets.broken(launches)
    except RuntimeError as error:  # an instruction that the emulator does not know
        launches = []
        over.append(f"launches were not counted: {error}")
    verdict = "\n".join(["Over budget:", *over]) if over else "Every budget is met (benchmarks/static/*budgets.py)."
    print(f"triton {facts['triton']}\n\n{loop_table.table(loops)}\n\n{launch_table.table(launches)}\n\n{verdict}")
    if options.csv:
        write(options.csv, LoopCost, facts, loops)
    if options.csv and launches:
        write(options.csv.with_stem(f"{options.csv.stem}-launches"), LaunchCost, facts, launches)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        rows = {"rows": [asdict(row) for row in loops], "launches": [asdict(row) for row in launches]}
        options.json.write_text(json.dumps({**facts, **rows}, indent=1) + "\n")
    if over:
        sys.exit(1)
