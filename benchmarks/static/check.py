"""``python -m benchmarks static``: cross-compile every kernel, without a GPU, and hold its loops to their budgets."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.machine import environment
from benchmarks.results import write
from benchmarks.static.budgets import broken
from benchmarks.static.loop_cost import LoopCost
from benchmarks.static.loop_table import ARCHITECTURES, measure, table


def main(arguments: list[str]) -> None:
    """Exits with 1 where a budget is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks static", description=__doc__)
    parser.add_argument("--arch", nargs="+", default=["sm_90"], choices=ARCHITECTURES)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows, and the versions, to this file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same as JSON")
    options = parser.parse_args(arguments)
    facts = {**environment(torch.device("cpu")), "command": " ".join(["python -m benchmarks static", *arguments])}
    rows = measure(options.arch)
    over = broken(rows)
    verdict = "\n".join(["Over budget:", *over]) if over else "Every budget is met (benchmarks/static/budgets.py)."
    print(f"triton {facts['triton']}\n\n{table(rows)}\n\n{verdict}")
    if options.csv:
        write(options.csv, LoopCost, facts, rows)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if over:
        sys.exit(1)
