"""``python -m benchmarks train``: the cost of a training step, of whole trainers beside each other.

Every variant trains the same random weights on the same pairs, in a process of its own, so that its peak memory is its
own; the variants take turns. On a CPU each has one thread. A file that was begun with the same code on the same machine
is taken up where it stops.
"""

import argparse
import importlib.metadata
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.machine import environment, run_module
from benchmarks.objectives import OBJECTIVES
from benchmarks.peers.installed import use_wheels
from benchmarks.results import Facts, agrees, read, write
from benchmarks.training.answers import WRONG, checked
from benchmarks.training.lengths import NAMED
from benchmarks.training.runs import Run
from benchmarks.training.runs_table import text
from benchmarks.training.setting import DOCUMENTED, SETTINGS, Work
from benchmarks.training.variants import KEYS, LENGTHS_KEYS, REFERENCE_KEYS, Variant, available
from benchmarks.training.worker import blank

SAME = ("machine", "torch", "transformers", "source", "timed steps")
"""Facts that a file shares with the rows that are added to it."""

TURNS, TIMED = 5, 8


@dataclass(frozen=True)
class Plan:
    """The runs of one file."""

    works: Sequence[Work]
    device: torch.device
    turns: int = TURNS  # processes of each variant
    timed: int = TIMED  # steps that are timed in each
    keys: Sequence[str] = REFERENCE_KEYS
    commit: str | None = None  # of a tree that is a copy without its history

    def measure(self, file: Path, deadline: float = float("inf")) -> bool:
        """Add to the file the runs that it lacks or that failed, and print the table of all; whether it has them all
        now, with figures.

        Answers are looked at as runs come in, against the first of humanline's: another answer keeps no figures.

        Args:
            deadline: of :func:`time.monotonic`; no run begins after it.
        """
        variants = {work: available(self.keys, work.objective) for work in self.works}
        facts = self.facts({variant.key: variant for chosen in variants.values() for variant in chosen}.values())
        print(f"{facts['machine']}; torch {facts['torch']}; transformers {facts['transformers']}")
        runs: list[Run] = []
        if agrees(file, facts, SAME):
            kept, runs = read(file, Run)
            facts = {**kept, **facts}
        runs = [run for run in runs if not run.note or run.note.startswith(WRONG)]
        done = {(run.setting, run.variant, run.turn) for run in runs}
        wanted = [
            (work, variant, turn) for turn in range(self.turns) for work in self.works for variant in variants[work]
        ]
        missing = [one for one in wanted if _key(*one) not in done]
        for work, variant, turn in missing:
            if time.monotonic() > deadline:
                break
            print(f"{work.setting.name}, turn {turn + 1} of {self.turns}: {variant.name}", flush=True)
            runs = checked([*runs, self.in_a_process(work, variant, turn)], bitwise=self.device.type == "cpu")
            done.add(_key(work, variant, turn))
            write(file, Run, facts, runs)
        print(f"\n{text(runs, on_gpu=self.device.type == 'cuda')}")
        return all(_key(*one) in done for one in missing) and not any(run.note for run in runs)

    def facts(self, variants: Iterable[Variant]) -> Facts:
        libraries = {name: importlib.metadata.version(name) for name in ("transformers", "accelerate")}
        if self.device.type == "cpu":
            libraries["threads"] = "1 in every process"
        warm_up = max(work.setting.warm_up for work in self.works)
        steps = {"timed steps": f"{self.timed} after {warm_up} that are not"}
        return {**environment(self.device, self.commit), **libraries, **steps, **{v.name: v.source for v in variants}}

    def in_a_process(self, work: Work, variant: Variant, turn: int) -> Run:
        """One run, in a new interpreter."""
        changes: dict[str, str | None] = {"TRITON_INTERPRET": None}  # it would take minutes a step
        if self.device.type == "cpu":
            changes["OMP_NUM_THREADS"] = "1"  # other work on the machine does not change its CPU time
        with tempfile.TemporaryDirectory() as folder:
            file, output = Path(folder) / "run.csv", Path(folder) / "output.txt"
            task = variant.key, *work, self.device.type, str(self.timed), str(turn), str(file)
            with output.open("w") as to:
                child = run_module(
                    "benchmarks.training.worker", *task, changes=changes, stdout=to, stderr=subprocess.STDOUT
                )
            if file.is_file():
                return read(file, Run)[1][0]
            last = (output.read_text().strip().splitlines() or [""])[-1]
            note = f"the process ended with {child.returncode}: {last[:60]}"
            return replace(blank(variant, work.setting, turn), note=note)


def _key(work: Work, variant: Variant, turn: int) -> tuple[str, str, int]:
    return work.setting.name, variant.name, turn


def main(arguments: list[str]) -> None:
    """Exits with 1 where a variant gave another answer or none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks train", description=__doc__)
    parser.add_argument("--model", choices=tuple(SETTINGS), help="default: 1.5b with a GPU, else cpu")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument("--lengths", help=f"realistic lengths: {', '.join(NAMED)}, or a JSONL file; compares layouts")
    parser.add_argument("--objective", choices=tuple(OBJECTIVES), default="dpo", help="with --lengths")
    parser.add_argument("--all-lengths", action="store_true", help="every row of the table of docs/performance.md")
    parser.add_argument("--variants", nargs="+", choices=KEYS, help="default: all of the comparison")
    parser.add_argument("--turns", type=int, help=f"processes of each variant; default {TURNS}, with lengths 1")
    parser.add_argument("--steps", type=int, help=f"steps that are timed in each; default {TIMED}, with lengths 1")
    parser.add_argument("--wheels", type=Path, help="folder of pure-Python wheels of peers that are not installed")
    parser.add_argument("--csv", type=Path, help="keep the runs, and the machine's facts, in this file")
    options = parser.parse_args(arguments)
    on_lengths = options.all_lengths or options.lengths is not None
    turns, steps = (
        default if given is None else given
        for given, default in zip((options.turns, options.steps), (1, 1) if on_lengths else (TURNS, TIMED), strict=True)
    )
    if steps < 1 or turns < 1:
        parser.error(f"expected --steps >= 1 and --turns >= 1, got {steps} and {turns}")
    if options.objective != "dpo" and not on_lengths:
        parser.error(f"--objective: expected --lengths with {options.objective}, got none")
    if options.wheels:
        use_wheels(options.wheels)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = options.model or ("1.5b" if device.type == "cuda" else "cpu")
    asked = Work(model, options.objective, options.lengths or "")
    works = [work._replace(model=model) for work in DOCUMENTED] if options.all_lengths else [asked]
    plan = Plan(works, device, turns, steps, options.variants or (LENGTHS_KEYS if on_lengths else REFERENCE_KEYS))
    with tempfile.TemporaryDirectory() as folder:
        if not plan.measure(options.csv or Path(folder) / "runs.csv"):
            sys.exit(1)
