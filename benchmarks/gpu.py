"""``python -m benchmarks gpu``: everything that belongs on a GPU, in parts that can be taken up again.

A part is the tests on compiled kernels, the rows that the L2 cache holds, one vocabulary, on logits or on hidden
states (every case of that kind in every mode, or those that ``--case`` names), or a training step of whole trainers.
The most valuable part is the first. Its file grows by one comparison or run at a time. A file with the same source,
providers and repeats of the same machine is taken up: its comparisons are not measured again, unless somebody ran out
of memory or failed.

Nothing begins after 25 minutes (``--minutes``), and nothing of a part after its share of them; the same command takes
it up there. Parts that ``--part`` names have no shares. A part that fails does not stop the next. Needs torch, triton,
transformers and this tree (``PYTHONPATH=.:kernels`` where nothing is installed), pytest and hypothesis for the tests,
and a folder of wheels for the peers.

With ``--toy``, or without a GPU, the same parts run to their end on a CPU: small logits, eager providers timed, the
kernels' answers checked under Triton's interpreter.
"""

import argparse
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.batches import MASKED_SHARE, random_batch
from benchmarks.kernels.cases import CASES, HEAD_CASES, LOGITS_CASES, MODES, Case, Mode
from benchmarks.kernels.compare import FINAL, WRONG, compare, final
from benchmarks.kernels.figures import Row, figures
from benchmarks.kernels.kernel_goals import HEAD_GOALS, LOGITS_GOALS, judged
from benchmarks.kernels.providers import KEYS, OURS, Provider, announced, sources
from benchmarks.machine import environment, run_module
from benchmarks.measure import MIB, give_back_memory
from benchmarks.peers.installed import missing, use_wheels
from benchmarks.results import RESULTS, Facts, agrees, read, write
from benchmarks.tables import columns

B, T, H = 8, 1024, 4096
TOY_B, TOY_T, TOY_FACTOR = 4, 6, 64  # at toy size V and H are this many times smaller, and as odd or even as they were
SAME = ("machine", "torch", "triton", "source", "repeats", "providers")
"""Facts that a file shares with the rows that are added to it; a commit would not tell one changed tree from the
next."""


@dataclass
class Session:
    """One call of ``python -m benchmarks gpu``."""

    results: Path
    facts: Facts  # at the head of every file
    device: torch.device
    providers: list[Provider]
    repeats: int
    toy: bool = False  # small sizes, on a CPU
    deadline: float = float("inf")  # of the whole session, on the monotonic clock
    shares: bool = False  # whether each part also ends with its own minutes
    cases: Collection[str] = tuple(CASES)
    rows: list[Row] = field(default_factory=list)  # of all parts

    def until(self, minutes: float) -> float:
        """The time after which a part of so many minutes begins nothing."""
        return min(self.deadline, time.monotonic() + 60 * minutes) if self.shares else self.deadline

    @property
    def machine(self) -> str:
        """As part of a file's name."""
        name = "cpu-toy" if self.toy else self.facts["machine"].lower()
        return re.sub(r"[^a-z0-9]+", "-", name).strip("-")

    def file(self, part: str, kind: type[Any]) -> Path:
        """The newest with the session's facts, or a new one with today's date."""
        for file in sorted(self.results.glob(f"{self.machine}-????-??-??-{part}.csv"), reverse=True):
            if agrees(file, self.facts, SAME):
                return file
        file = self.results / f"{self.machine}-{date.today()}-{part}.csv"
        write(file, kind, self.facts)
        return file


@dataclass(frozen=True)
class Suite:
    """Every case of one vocabulary in every mode; on hidden states where there is an H, else on logits."""

    V: int
    masked: float = 0.0
    H: int | None = None
    _: KW_ONLY
    minutes: float = 1.0
    compiled: bool = False  # with torch.compile, which takes as long as all others together

    @property
    def name(self) -> str:
        hidden = f"-h{self.H}" if self.H not in (None, H) else ""
        return ("head-" if self.H else "") + f"v{self.V}{hidden}" + ("-masked" if self.masked else "")

    @property
    def measures(self) -> str:
        elements = (B * T + self.V) * self.H if self.H else B * T * self.V
        inputs = f"{2 * elements * torch.bfloat16.itemsize / 2**30:.1f} GiB of inputs"
        kind = "hidden states" if self.H else "logits"
        return f"every case on {kind}, {self.masked:.0%} of the rows masked; {inputs}"

    def run(self, session: Session) -> bool:
        file = session.file(self.name, Row)
        complete = self.measure(file, session)
        rows = read(file, Row)[1]
        print(f"{file.name}\n{columns(figures(rows))}", flush=True)
        session.rows += rows
        return complete

    def measure(self, file: Path, session: Session) -> bool:
        """Add to the file the comparisons that it lacks, or in which somebody failed; whether it has them all now."""
        deadline = session.until(self.minutes)
        facts, rows = read(file, Row)
        failed = {(row.case, row.mode) for row in rows if not final(row.note)}
        done = {(row.case, row.mode) for row in rows} - failed
        providers = [one for one in session.providers if self.compiled or one.key != "compile"]
        answered = {name for provider in providers for name in provider.cases} & {*session.cases}
        cases = [case for case in (HEAD_CASES if self.H else LOGITS_CASES).values() if case.name in answered]
        missing: list[tuple[Case, Mode]] = [
            (case, mode) for case in cases for mode in case.modes if (case.name, mode) not in done
        ]
        if not missing or time.monotonic() > deadline:
            return not missing
        sequences, tokens, factor = (TOY_B, TOY_T, TOY_FACTOR) if session.toy else (B, T, 1)
        V, H = self.V // factor, self.H and self.H // factor
        batch = random_batch(sequences, tokens, V, torch.bfloat16, session.device, self.masked, H)
        for case, mode in sorted(missing, key=lambda one: MODES.index(one[1]), reverse=True):  # with gradients first
            if time.monotonic() > deadline:
                return False
            measured = compare(case, mode, batch, providers, session.repeats)
            rows = [*(row for row in rows if (row.case, row.mode) != (case.name, mode)), *measured]
            write(file, Row, facts, rows)
        return True


@dataclass(frozen=True)
class Part:
    """Anything else that can be taken up again."""

    name: str
    measures: str
    minutes: float
    fill: Callable[[Session, float], bool]  # its file, until a time; whether the file is complete

    def run(self, session: Session) -> bool:
        return self.fill(session, session.until(self.minutes))


def training_step(session: Session, deadline: float) -> bool:
    if absent := missing("accelerate", "datasets", "transformers"):
        print(f"Left out: it needs {', '.join(absent)}")
        return True
    from benchmarks.training.setting import Work
    from benchmarks.training.train import TIMED, TURNS, Plan

    turns, timed = (1, 2) if session.toy else (TURNS, TIMED)
    work = Work("toy" if session.toy else "1.5b")
    plan = Plan([work], session.device, turns, timed, commit=session.facts["commit"])
    file = session.results / f"training-{session.machine}-{work.model}.csv"
    print(file.name, flush=True)
    return plan.measure(file, deadline)


def gpu_tests(session: Session, deadline: float) -> bool:
    if absent := missing("pytest", "hypothesis"):
        print(f"Left out: it needs {', '.join(absent)}")
        return True
    from benchmarks import kernel_tests

    file = session.file("tests", kernel_tests.Outcome)
    rows = read(file, kernel_tests.Outcome)[1]
    if not kernel_tests.sound(rows):
        rows = kernel_tests.run_tests(session.toy, deadline)
        write(file, kernel_tests.Outcome, session.facts, rows)
    print(f"{file.name}\n{kernel_tests.said(rows)}", flush=True)
    return kernel_tests.sound(rows)


def cached_rows(session: Session, deadline: float) -> bool:
    from benchmarks.kernels.cached_rows import CachedRows, measure, said

    file = session.file("cache", CachedRows)
    rows = read(file, CachedRows)[1] or measure(session.device, session.repeats, session.toy, deadline)
    write(file, CachedRows, session.facts, rows)
    print(f"{file.name}\n{said(rows)}", flush=True)
    return bool(rows)


PARTS: tuple[Part | Suite, ...] = (
    Part("tests", "the tests of the kernels, compiled for this GPU", 4, gpu_tests),
    Part(
        "cache",
        "GRPO's and a head's one launch with more and more rows in flight",
        1,
        cached_rows,
    ),
    Suite(128256, minutes=3, compiled=True),
    Suite(128256, H=H, minutes=4),
    Suite(128256, H=896, minutes=1.5),
    Suite(128256, H=1536, minutes=1.5),
    Part("training", "a training step of whole trainers; a process for each variant and turn", 2.5, training_step),
    Suite(32000),
    Suite(50257),
    Suite(256000),
    Suite(151936),
    Suite(128256, MASKED_SHARE),
    Suite(128256, MASKED_SHARE, H),
    Suite(151936, H=H, minutes=0.5),
    Suite(151936, MASKED_SHARE, H, minutes=0.5),
)
MINUTES, REPEATS = 25.0, 12


def main(arguments: list[str]) -> None:
    """Exits with 1 where a part is not complete or one of our answers is wrong or missing."""
    options = _options(arguments)
    toy = options.toy or not torch.cuda.is_available()
    if toy and os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads the variable when a kernel is defined
        child = run_module("benchmarks", "gpu", *arguments, changes={"TRITON_INTERPRET": "1"})
        if child.returncode:
            sys.exit(child.returncode)
        return
    session = _session(options, toy)
    by_name = {part.name: part for part in PARTS}
    incomplete = [name for name in options.part or by_name if not is_complete(by_name[name], session)]
    wrong = _judge(session)
    if incomplete:
        print(f"\nNot complete: {', '.join(incomplete)}. The same command takes them up where they stopped.")
    if wrong or incomplete:
        sys.exit(1)


def is_complete(part: Part | Suite, session: Session) -> bool:
    """Run the part; an error is printed, and the next part can run."""
    print(f"\n{part.name}: {part.measures}", flush=True)
    try:
        return part.run(session)
    except Exception:
        traceback.print_exc()
        return False
    finally:
        give_back_memory(session.device)


def _judge(session: Session) -> bool:
    """Print the goals beside the figures; whether one of our answers is wrong or missing."""
    where = "none is measured at toy size"
    if not session.toy:  # the size of L2 decides which rows one launch can hold
        cache = torch.cuda.get_device_properties(session.device).L2_cache_size / MIB
        where = f"{session.facts['machine']}, {cache:.0f} MiB of L2"
    print(f"\nGoals of a GPU; {where}\n")
    rows = session.rows
    if session.toy:
        rows = [replace(row, ms_median=None, ceiling_ms=None, peak_mib=None) for row in rows]
    on_logits, on_hidden_states = ([row for row in rows if bool(row.H) is of_head] for of_head in (False, True))
    print(columns(judged(on_logits, LOGITS_GOALS) + judged(on_hidden_states, HEAD_GOALS)))
    wrong = [row for row in rows if row.provider.startswith(OURS) and row.note not in FINAL - {WRONG}]
    for row in wrong:
        print(f"\n{row.provider}, {row.case} {row.mode}, V={row.V}: {row.note}")
    return bool(wrong)


def _session(options: argparse.Namespace, toy: bool) -> Session:
    if toy:
        from tests.interpreter import round_as_hardware_does

        round_as_hardware_does()
    if options.wheels:
        use_wheels(options.wheels)
    results = options.results or (Path(tempfile.mkdtemp(prefix="toy-results-")) if toy else RESULTS)
    device = torch.device("cpu" if toy else "cuda")
    facts = environment(device, options.commit)
    print(f"{'Toy size, on a CPU; ' if toy else ''}{facts['machine']}; torch {facts['torch']}; results in {results}")
    providers = announced(options.providers or [key for key in KEYS if not (toy and key == "compile")], device)
    repeats = options.repeats or (2 if toy else REPEATS)
    facts |= {"repeats": str(repeats), "providers": " | ".join(provider.name for provider in providers)}
    facts |= sources(providers)
    minutes = float("inf") if toy else MINUTES
    deadline = time.monotonic() + 60 * (minutes if options.minutes is None else options.minutes)
    shares = not toy and not options.part
    return Session(results, facts, device, providers, repeats, toy, deadline, shares, options.case)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    names = [part.name for part in PARTS]
    parser.add_argument("--part", nargs="+", choices=names, help="in this order; without it all, each with its share")
    parser.add_argument("--case", nargs="+", choices=tuple(CASES), default=tuple(CASES), help="without it, all")
    parser.add_argument("--toy", action="store_true", help="on a CPU, to see the command run to its end")
    parser.add_argument("--wheels", type=Path, help="folder of pure-Python wheels of peers that are not installed")
    parser.add_argument("--results", type=Path, help="folder of the CSVs: benchmarks/results/, or a new one for a toy")
    parser.add_argument("--providers", nargs="+", choices=KEYS, help="without it all, at toy size all but compile")
    parser.add_argument("--repeats", type=int, help=f"timed calls per provider: {REPEATS}, at toy size 2")
    parser.add_argument(
        "--minutes", type=float, help=f"nothing begins after so many: {MINUTES:g}, at toy size no limit"
    )
    parser.add_argument("--commit", help="of a tree that is a copy without its history")
    return parser.parse_args(arguments)
