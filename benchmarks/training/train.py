"""``python -m benchmarks train``: what a training step costs, of whole trainers beside each other.

Every variant trains the same random weights on the same pairs, in a process of its own, so that its peak memory is its
own; the variants take turns. On a CPU each has one thread. A file that was begun with the same code on the same machine
is taken up where it stops.
"""

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.peers.installed import use_wheels
from benchmarks.results import environment
from benchmarks.static.loop_table import columns
from benchmarks.training import runs
from benchmarks.training import step_goals as goals
from benchmarks.training.answers import WRONG, checked
from benchmarks.training.runs import Run
from benchmarks.training.setting import SETTINGS, TOY, Setting
from benchmarks.training.variants import KEYS, PLAIN, Variant, available
from benchmarks.training.worker import WARM_UP, blank

SAME = ("machine", "torch", "transformers", "source", "timed steps")
"""Facts that a file shares with what is added to it."""

TURNS, TIMED = 5, 8


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
    variants, obstacles = available(options.variants)
    for line in obstacles:
        print(line)
    facts = facts_of(variants, device, options.steps)
    print(f"{setting.name}: {facts['machine']}; torch {facts['torch']}; transformers {facts['transformers']}")
    with tempfile.TemporaryDirectory() as folder:
        file = options.csv or Path(folder) / "runs.csv"
        measure(file, facts, variants, setting, device, options.turns, options.steps)
        measured = [run for run in runs.read(file)[1] if run.setting == setting.name]
    if not report(measured, device):
        sys.exit(1)


def facts_of(
    variants: Sequence[Variant], device: torch.device, timed: int, commit: str | None = None
) -> dict[str, str]:
    """What the figures depend on."""
    libraries = {name: importlib.metadata.version(name) for name in ("transformers", "accelerate")}
    if device.type == "cpu":
        libraries["threads"] = "1 in every process"
    steps = {"timed steps": f"{timed} after {WARM_UP} and before 1 that are not"}
    return {**environment(device, commit), **libraries, **steps, **{v.name: v.source for v in variants}}


def measure(
    file: Path,
    facts: dict[str, str],
    variants: Sequence[Variant],
    setting: Setting,
    device: torch.device,
    turns: int,
    timed: int,
    deadline: float = float("inf"),
) -> bool:
    """Add to the file the runs that it lacks or that failed; whether it has them all now.

    Answers are looked at as runs come in, against the first of humanline's: another answer keeps no figures.

    Args:
        deadline: of :func:`time.monotonic`; no run begins after it.
    """
    kept, known = runs.read(file) if file.is_file() else ({}, [])
    if any(kept.get(fact) != facts[fact] for fact in SAME):
        kept, known = {}, []
    known = [run for run in known if run.setting == setting.name and (not run.note or run.note.startswith(WRONG))]
    done = {(run.variant, run.turn) for run in known}
    for turn in range(turns):
        for variant in variants:
            if (variant.name, turn) in done:
                continue
            if time.monotonic() > deadline:
                return False
            print(f"turn {turn + 1} of {turns}: {variant.name}", flush=True)
            run = in_a_process(variant, setting, device, timed, turn)
            known = checked([*known, run], bitwise=device.type == "cpu")
            runs.write(file, {**kept, **facts}, known)
    return True


def in_a_process(variant: Variant, setting: Setting, device: torch.device, timed: int, turn: int) -> Run:
    """One run, in an interpreter that did nothing before."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment.pop("TRITON_INTERPRET", None)  # it would take minutes a step
    if device.type == "cpu":
        environment["OMP_NUM_THREADS"] = "1"  # its CPU time is then what it takes undisturbed
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder) / "run.csv", Path(folder) / "output.txt"
        task = [variant.key, setting.name, device.type, str(timed), str(turn), str(file)]
        command = [sys.executable, "-m", "benchmarks.training.worker", *task]
        with output.open("w") as to:
            child = subprocess.run(command, env=environment, stdout=to, stderr=subprocess.STDOUT, check=False)
        if file.is_file():
            return runs.read(file)[1][0]
        last = (output.read_text().strip().splitlines() or [""])[-1]
        note = f"the process ended with {child.returncode}: {last[:60]}"
        return replace(blank(variant, setting, turn), note=note)


def report(measured: Sequence[Run], device: torch.device) -> bool:
    """Print the variants and the goals; whether every run gave figures."""
    summaries = runs.summaries(measured, PLAIN)
    print()
    print(columns([runs.HEADER, *(summary.cells() for summary in summaries)]))
    print("\nTime over plain's: of the same step, the least of the turns. Peak: see benchmarks/training/memory.py.")
    if measured and measured[0].setting == TOY.name:
        print("No goal is judged at toy size.")
    else:
        wanted = goals.GPU if device.type == "cuda" else goals.ANYWHERE
        print()
        print(columns(goals.table(summaries, wanted)))
    return not any(run.note for run in measured)


def part(results: Path, machine_name: str, toy: bool, minutes: float, commit: str | None) -> bool:
    """What ``python -m benchmarks gpu`` calls for: all variants on its device; whether every run is there and right."""
    device, setting, turns, timed = torch.device("cuda"), SETTINGS["1.5b"], TURNS, TIMED
    if toy:
        device, setting, turns, timed = torch.device("cpu"), TOY, 1, 2
    variants, obstacles = available(KEYS)
    for line in obstacles:
        print(line)
    slug = re.sub(r"[^a-z0-9]+", "-", machine_name.lower()).strip("-")
    file = results / f"training-{slug}-{setting.name}.csv"
    print(f"\ntraining: {file.name}", flush=True)
    deadline = time.monotonic() + 60 * minutes
    complete = measure(
        file, facts_of(variants, device, timed, commit), variants, setting, device, turns, timed, deadline
    )
    return report(runs.read(file)[1] if file.is_file() else [], device) and complete
