"""``python -m benchmarks static``."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.static.budgets import broken
from benchmarks.static.loop_table import ARCHITECTURES, measure, table, to_json


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks static",
        description="Cross-compile every kernel, without a GPU, and count what its loops cost.",
    )
    parser.add_argument("--arch", nargs="+", default=["sm_90"], choices=ARCHITECTURES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    report = replace(measure(options.arch), command=" ".join(["python -m benchmarks static", *arguments]))
    over = broken(report.rows)
    verdict = "\n".join(["Over budget:", *over]) if over else "Every budget is met (benchmarks/static/budgets.py)."
    print(f"triton {report.triton}\n\n{table(report)}\n\n{verdict}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(to_json(report) + "\n")
    if over:
        sys.exit(1)
