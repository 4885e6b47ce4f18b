"""``python -m benchmarks gpu``: everything that belongs on a GPU, in parts that can be taken up again.

A part is one vocabulary; its comparisons are every case in every mode, and its file grows by one comparison at a time.
What the file holds, of the same source, providers and repeats on the same machine, is not measured again, unless
somebody ran out of memory or failed. A part begins no comparison after its seventh minute, and is taken up there by the
same command. Needs torch, triton, transformers and this tree (``PYTHONPATH=.:kernels`` where nothing is installed), and
a folder of wheels for the peers.

With ``--toy``, or without a GPU, the same parts run to their end on a CPU: small logits, eager providers timed, the
kernels' answers checked under Triton's interpreter.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch

from benchmarks import goals
from benchmarks.cases import CASES, MASKED_SHARE, Mode, make_batch
from benchmarks.compare import FINAL, WRONG, compare
from benchmarks.peers import use_wheels
from benchmarks.providers import KEYS, Provider, available, sources
from benchmarks.results import (
    HEADER,
    ROOT,
    Row,
    append_rows,
    drop_rows,
    environment,
    machine,
    machine_with_cache,
    read_csv,
    write_csv,
)
from benchmarks.static.report import columns

B, T = 8, 1024
TOY_B, TOY_T, TOY_FACTOR = 4, 6, 64
"""At toy size a vocabulary is this many times smaller, and as odd or even as it was."""


@dataclass(frozen=True)
class Part:
    """One vocabulary."""

    V: int
    masked: float = 0.0

    @property
    def name(self) -> str:
        return f"v{self.V}" + ("-masked" if self.masked else "")


PARTS = (Part(32000), Part(50257), Part(128256), Part(128256, MASKED_SHARE), Part(151936), Part(256000))


SAME = ("machine", "torch", "triton", "source", "repeats", "providers")
"""Facts that a file shares with what is added to it; a commit would not tell one changed tree from the next."""


def main(arguments: list[str]) -> None:
    """Exits with 1 where a part is not complete or one of our answers is wrong or missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    names = [part.name for part in PARTS]
    parser.add_argument("--part", nargs="+", choices=names, default=names, help="in this order; without it, all")
    parser.add_argument("--toy", action="store_true", help="on a CPU, to see the command run to its end")
    parser.add_argument("--wheels", type=Path, help="folder of pure-Python wheels of peers that are not installed")
    parser.add_argument("--results", type=Path, help="folder of the CSVs: benchmarks/results/, or a new one for a toy")
    parser.add_argument("--providers", nargs="+", choices=KEYS, help="without it all, at toy size all but compile")
    parser.add_argument("--repeats", type=int, help="timed calls per provider: 20, at toy size 2")
    parser.add_argument("--minutes", type=float, default=7.0, help="a part begins no comparison after so many")
    parser.add_argument("--commit", help="of a tree that is a copy without its history")
    options = parser.parse_args(arguments)
    toy = options.toy or not torch.cuda.is_available()
    if toy and os.environ.get("TRITON_INTERPRET") != "1":
        return _under_the_interpreter(arguments)  # Triton reads the variable when a kernel is defined
    if toy:
        from tests.interpreter import round_as_hardware_does

        round_as_hardware_does()
    if options.wheels:
        use_wheels(options.wheels)
    results = options.results or (Path(tempfile.mkdtemp(prefix="toy-results-")) if toy else ROOT / "benchmarks/results")
    device = torch.device("cpu" if toy else "cuda")
    keys = options.providers or [key for key in KEYS if not (toy and key == "compile")]
    providers, obstacles = available(keys, device)
    repeats = options.repeats or (2 if toy else 20)
    facts = environment(device, options.commit)
    print(f"{'Toy size, on a CPU; ' if toy else ''}{facts['machine']}; torch {facts['torch']}; results in {results}")
    for name, source in sources(providers).items():
        print(f"{name}: {source}")
    for obstacle in obstacles:
        print(obstacle)

    rows: list[Row] = []
    incomplete: list[str] = []
    for part in (part for name in options.part for part in PARTS if part.name == name):
        measured_by = {"repeats": str(repeats), "providers": " | ".join(provider.name for provider in providers)}
        of_part = {**facts, **measured_by, **sources(providers)}
        file = part_file(results, part, of_part, "cpu-toy" if toy else machine(device))
        print(f"\n{part.name}: {file.name}", flush=True)
        deadline = time.monotonic() + 60 * options.minutes
        if not measure(part, file, providers, repeats, device, toy, deadline):
            incomplete.append(part.name)
        measured = read_csv(file)[1]
        print(columns([HEADER, *(row.cells() for row in measured)]))
        rows += measured
    print(f"\nGoals of a GPU; {'none is measured at toy size' if toy else machine_with_cache(device)}\n")
    print(columns([goals.HEADER, *goals.table([_without_times(row) for row in rows] if toy else rows)]))
    wrong = [row for row in rows if row.provider.startswith("humanline_fused") and row.note not in FINAL - {WRONG}]
    for row in wrong:
        print(f"\n{row.provider}, {row.case} {row.mode}, V={row.V}: {row.note}")
    if incomplete:
        print(f"\nNot complete: {', '.join(incomplete)}. The same command takes them up where they stopped.")
    if wrong or incomplete:
        sys.exit(1)


def measure(
    part: Part,
    file: Path,
    providers: Sequence[Provider],
    repeats: int,
    device: torch.device,
    toy: bool,
    deadline: float,
) -> bool:
    """Add to the file the comparisons that it lacks, or where somebody failed; whether it has them all now."""
    known = read_csv(file)[1]
    done = {(row.case, row.mode) for row in known} - {(row.case, row.mode) for row in known if row.note not in FINAL}
    missing: list[tuple[str, Mode]] = [
        (case.name, mode)
        for case in CASES.values()
        for mode in case.passes
        if (case.name, mode) not in done and any(case.name in provider.cases for provider in providers)
    ]
    if not missing:
        return True
    shape = (TOY_B, TOY_T, part.V // TOY_FACTOR) if toy else (B, T, part.V)
    batch = make_batch(*shape, torch.bfloat16, device, part.masked)
    for name, mode in missing:
        if time.monotonic() > deadline:
            return False
        rows = compare(CASES[name], mode, batch, providers, repeats)
        drop_rows(file, name, mode)
        append_rows(file, rows)
    return True


def part_file(results: Path, part: Part, facts: dict[str, str], machine_name: str) -> Path:
    """The part's file of these facts: the newest that is there, or a new one with today's date."""
    machine_slug = re.sub(r"[^a-z0-9]+", "-", machine_name.lower()).strip("-")
    dates = "[0-9]" * 4 + "-[0-9][0-9]" * 2
    for file in sorted(results.glob(f"{machine_slug}-{dates}-{part.name}.csv"), reverse=True):
        known = read_csv(file)[0]
        if all(known.get(fact) == facts[fact] for fact in SAME):
            return file
    file = results / f"{machine_slug}-{date.today()}-{part.name}.csv"
    write_csv(file, facts)
    return file


def _without_times(row: Row) -> Row:
    return replace(row, ms_median=None, ceiling_ms=None, peak_mib=None)


def _under_the_interpreter(arguments: list[str]) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.run([sys.executable, "-m", "benchmarks", "gpu", *arguments], env=environment, check=False)
    if child.returncode:
        sys.exit(child.returncode)
