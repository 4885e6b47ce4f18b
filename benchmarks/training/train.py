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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.machine import environment, run_module
from benchmarks.peers.installed import use_wheels
from benchmarks.results import Facts, agrees, read, write
from benchmarks.training.answers import WRONG, checked
from benchmarks.training.runs import Run
from benchmarks.training.runs_table import text
from benchmarks.training.setting import SETTINGS, Setting
from benchmarks.training.variants import KEYS, Variant, available
from benchmarks.training.worker import WARM_UP, blank

SAME = ("machine", "torch", "transformers", "source", "timed steps")
"""Facts that a file shares with the rows that are added to it."""

TURNS, TIMED = 5, 8


@dataclass(frozen=True)
class Plan:
    """The runs of one file."""

    setting: Setting
    device: torch.device
    turns: int = TURNS  # processes of each variant
    timed: int = TIMED  # steps that are timed in each
    keys: Sequence[str] = KEYS
    commit: str | None = None  # of a tree that is a copy without its history

    def measure(self, file: Path, deadline: float = float("inf")) -> bool:
        """Add to the file the runs that it lacks or that failed, and print the table of all; whether it has them all
        now, with figures.

        Answers are looked at as runs come in, against the first of humanline's: another answer keeps no figures.

        Args:
            deadline: of :func:`time.monotonic`; no run begins after it.
        """
        variants = available(self.keys)
        facts = self.facts(variants)
        print(f"{self.setting.name}: {facts['machine']}; torch {facts['torch']}; transformers {facts['transformers']}")
        runs: list[Run] = []
        if agrees(file, facts, SAME):
            kept, runs = read(file, Run)
            facts = {**kept, **facts}
        runs = [r for r in runs if r.setting == self.setting.name and (not r.note or r.note.startswith(WRONG))]
        done = {(run.variant, run.turn) for run in runs}
        missing = [(v, turn) for turn in range(self.turns) for v in variants if (v.name, turn) not in done]
        for variant, turn in missing:
            if time.monotonic() > deadline:
                break
            print(f"turn {turn + 1} of {self.turns}: {variant.name}", flush=True)
            runs = checked([*runs, self.in_a_process(variant, turn)], bitwise=self.device.type == "cpu")
            done.add((variant.name, turn))
            write(file, Run, facts, runs)
        print(f"\n{text(runs, on_gpu=self.device.type == 'cuda')}")
        return all((v.name, turn) in done for v, turn in missing) and not any(run.note for run in runs)

    def facts(self, variants: Sequence[Variant]) -> Facts:
        libraries = {name: importlib.metadata.version(name) for name in ("transformers", "accelerate")}
        if self.device.type == "cpu":
            libraries["threads"] = "1 in every process"
        steps = {"timed steps": f"{self.timed} after {WARM_UP} and before 1 that are not"}
        return {**environment(self.device, self.commit), **libraries, **steps, **{v.name: v.source for v in variants}}

    def in_a_process(self, variant: Variant, turn: int) -> Run:
        """One run, in a new interpreter."""
        changes: dict[str, str | None] = {"TRITON_INTERPRET": None}  # it would take minutes a step
        if self.device.type == "cpu":
            changes["OMP_NUM_THREADS"] = "1"  # other work on the machine does not change its CPU time
        with tempfile.TemporaryDirectory() as folder:
            file, output = Path(folder) / "run.csv", Path(folder) / "output.txt"
            task = variant.key, self.setting.name, self.device.type, str(self.timed), str(turn), str(file)
            with output.open("w") as to:
                child = run_module(
                    "benchmarks.training.worker", *task, changes=changes, stdout=to, stderr=subprocess.STDOUT
                )
            if file.is_file():
                return read(file, Run)[1][0]
            last = (output.read_text().strip().splitlines() or [""])[-1]
            note = f"the process ended with {child.returncode}: {last[:60]}"
            return replace(blank(variant, self.setting, turn), note=note)


def main(arguments: list[str]) -> None:
    """Exits with 1 where a variant gave another answer or none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks train", description=__doc__)
    parser.add_argument("--model", choices=tuple(SETTINGS), help="default: 1.5b with a GPU, else cpu")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument("--variants", nargs="+", choices=KEYS, default=KEYS, help="those that are installed")
    parser.add_argument("--turns", type=int, default=TURNS, help="processes of each variant")
    parser.add_argument("--steps", type=int, default=TIMED, help="steps that are timed in each, at least 2")
    parser.add_argument("--wheels", type=Path, help="folder of pure-Python wheels of peers that are not installed")
    parser.add_argument("--csv", type=Path, help="keep the runs, and the machine's facts, in this file")
    options = parser.parse_args(arguments)
    if options.steps < 2 or options.turns < 1:
        parser.error(f"expected --steps >= 2 and --turns >= 1, got {options.steps} and {options.turns}")
    if options.wheels:
        use_wheels(options.wheels)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    setting = SETTINGS[options.model or ("1.5b" if device.type == "cuda" else "cpu")]
    plan = Plan(setting, device, options.turns, options.steps, options.variants)
    with tempfile.TemporaryDirectory() as folder:
        if not plan.measure(options.csv or Path(folder) / "runs.csv"):
            sys.exit(1)
