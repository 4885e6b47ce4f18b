"""The tests of a GPU, in a process of their own, and how many of them passed."""

import subprocess
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import run_module
from benchmarks.peers.installed import missing
from benchmarks.results import ROOT, read
from benchmarks.tables import columns, piped

TOY = ["tests/test_log_ratio.py"]
PROCESSES = 8  # compile kernels; the GPU is shared


@dataclass(frozen=True)
class Outcome:
    """Tests that ended alike."""

    outcome: str  # "passed", "failed" or "skipped"
    tests: int
    seconds: float  # added up over processes


def run_tests(toy: bool, deadline: float) -> list[Outcome]:
    """Run them, and print which failed; none where they did not end in time.

    Args:
        toy: one file, on whatever runs the kernels here.
        deadline: of :func:`time.monotonic`; the tests are stopped then.
    """
    several = [] if toy or missing("xdist") else ["-n", str(PROCESSES), "--dist", "loadfile"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        chosen = ["-q", "-m", "gpu", f"--junitxml={report}", *several, *(TOY if toy else [])]
        left = max(0.0, min(deadline - time.monotonic(), 1e6))
        try:
            run_module("pytest", *chosen, changes={"TRITON_INTERPRET": None}, timeout=left, cwd=ROOT)
        except subprocess.TimeoutExpired:
            print("The tests did not end in time.")
            return []
        return outcomes(report) if report.is_file() else []


def outcomes(report: Path) -> list[Outcome]:
    """Of a JUnit report; prints the names of tests that failed."""
    count: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        if outcome == "failed":
            print(f"failed: {case.get('classname')}::{case.get('name')}")
        count[outcome] += 1
        seconds[outcome] = seconds.get(outcome, 0.0) + float(case.get("time", 0))
    return [Outcome(name, tests, round(seconds[name], 1)) for name, tests in sorted(count.items())]


def sound(rows: Sequence[Outcome]) -> bool:
    """Whether there are tests, and none failed."""
    found = {row.outcome for row in rows}
    return "passed" in found and "failed" not in found


def said(rows: Sequence[Outcome]) -> str:
    return columns([_line(row) for row in rows])


def markdown(path: Path, name: str, words: Sequence[str] = ()) -> str:
    facts, rows = read(path, Outcome)
    source = f"Tests of the kernels, `{name}`: {facts['machine']}; torch {facts['torch']}; triton {facts['triton']}."
    return f"{piped([_line(row) for row in rows])}\n\n{source}"


def _line(row: Outcome) -> dict[str, str]:
    return {"outcome": row.outcome, "tests": str(row.tests), "s": f"{row.seconds:.0f}"}
