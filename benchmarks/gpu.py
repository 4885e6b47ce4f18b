"""``python -m benchmarks gpu``: everything that belongs on a GPU, in parts that can be taken up again.

A part is one vocabulary, on logits or on hidden states; its comparisons are every case of that kind in every mode (or
those that ``--case`` names), and its file grows by one comparison at a time. One part more is a training step, of whole
trainers (``training/command.py``), whose file grows by one of their runs.
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
from benchmarks.kernels import kernel_goals as head_goals
from benchmarks.kernels.cases import MASKED_SHARE, Inputs, Mode
from benchmarks.kernels.compare import FINAL, WRONG, compare
from benchmarks.kernels.head import HEAD_CASES, make_head_batch
from benchmarks.kernels.logits import LOGITS_CASES, make_batch
from benchmarks.kernels.providers import KEYS, Provider, available, sources
from benchmarks.kernels.registry import CASES
from benchmarks.peers.installed import missing, use_wheels
from benchmarks.results import (
    ROOT,
    Row,
    append_rows,
    drop_rows,
    environment,
    filled,
    machine,
    machine_with_cache,
    read_csv,
    write_csv,
)
from benchmarks.static.loop_table import columns

B, T = 8, 1024
TOY_B, TOY_T, TOY_FACTOR = 4, 6, 64
"""At toy size V and H are this many times smaller, and as odd or even as they were."""


@dataclass(frozen=True)
class Part:
    """One vocabulary; on hidden states where there is an H, else on logits."""

    V: int
    masked: float = 0.0
    H: int | None = None

    @property
    def name(self) -> str:
        return ("head-" if self.H else "") + f"v{self.V}" + ("-masked" if self.masked else "")

    @property
    def cases(self) -> list[str]:
        return list(HEAD_CASES if self.H else LOGITS_CASES)

    def batch(self, device: torch.device, toy: bool) -> Inputs:
        factor, (rows, tokens) = (TOY_FACTOR, (TOY_B, TOY_T)) if toy else (1, (B, T))
        common = torch.bfloat16, device, self.masked
        if self.H:
            return make_head_batch(rows, tokens, self.V // factor, self.H // factor, *common)
        return make_batch(rows, tokens, self.V // factor, *common)


H = 4096
PARTS = (
    Part(32000),
    Part(50257),
    Part(128256),
    Part(128256, MASKED_SHARE),
    Part(151936),
    Part(256000),
    Part(128256, H=H),
    Part(128256, MASKED_SHARE, H),
    Part(151936, H=H),
    Part(151936, MASKED_SHARE, H),
)

TRAINING = "training"
"""The part that compares whole trainers; it needs what a trainer needs: accelerate and datasets."""

SAME = ("machine", "torch", "triton", "source", "repeats", "providers")
"""Facts that a file shares with what is added to it; a commit would not tell one changed tree from the next."""


def main(arguments: list[str]) -> None:
    """Exits with 1 where a part is not complete or one of our answers is wrong or missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    names = [*(part.name for part in PARTS), TRAINING]
    parser.add_argument("--part", nargs="+", choices=names, default=names, help="in this order; without it, all")
    parser.add_argument("--case", nargs="+", choices=tuple(CASES), default=tuple(CASES), help="without it, all")
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
        if not measure(part, file, providers, repeats, device, toy, deadline, options.case):
            incomplete.append(part.name)
        measured = read_csv(file)[1]
        if measured:
            print(columns(filled(measured)))
        rows += measured
    if TRAINING in options.part and not _training(results, options, toy, device):
        incomplete.append(TRAINING)
    print(f"\nGoals of a GPU; {'none is measured at toy size' if toy else machine_with_cache(device)}\n")
    judged = [_without_times(row) for row in rows] if toy else rows
    for of_kind, wanted in (
        ([row for row in judged if not row.H], goals.GOALS),
        ([row for row in judged if row.H], head_goals.GPU),
    ):
        if of_kind:
            print(columns([goals.HEADER, *goals.table(of_kind, wanted)]))
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
    cases: Sequence[str] = tuple(CASES),
) -> bool:
    """Add to the file the comparisons of these cases that it lacks, or where somebody failed; whether it has them all
    now."""
    known = read_csv(file)[1]
    done = {(row.case, row.mode) for row in known} - {(row.case, row.mode) for row in known if row.note not in FINAL}
    missing: list[tuple[str, Mode]] = [
        (name, mode)
        for name in part.cases
        if name in cases and any(name in provider.cases for provider in providers)
        for mode in CASES[name].modes
        if (name, mode) not in done
    ]
    if not missing:
        return True
    batch = part.batch(device, toy)
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


def _training(results: Path, options: argparse.Namespace, toy: bool, device: torch.device) -> bool:
    if absent := missing("accelerate", "datasets", "transformers"):
        print(f"\nLeft out: {TRAINING}: it needs {', '.join(absent)}")
        return True
    from benchmarks.training.train import part

    return part(results, "cpu-toy" if toy else machine(device), toy, options.minutes, options.commit)


def _without_times(row: Row) -> Row:
    return replace(row, ms_median=None, ceiling_ms=None, peak_mib=None)


def _under_the_interpreter(arguments: list[str]) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.run([sys.executable, "-m", "benchmarks", "gpu", *arguments], env=environment, check=False)
    if child.returncode:
        sys.exit(child.returncode)
