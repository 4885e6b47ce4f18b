"""The comparisons of one vocabulary, and the file that grows by one of them at a time.

A file with the same source, providers and repeats of the same machine is taken up: its comparisons are not measured
again, unless somebody ran out of memory or failed.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch

from benchmarks.batches import AnyBatch, random_batch
from benchmarks.kernels.cases import CASES, HEAD_CASES, LOGITS_CASES, Case, Mode
from benchmarks.kernels.compare import FINAL, compare
from benchmarks.kernels.figures import Row
from benchmarks.kernels.providers import Provider
from benchmarks.machine import slug
from benchmarks.results import Facts, agrees, read, write

B, T = 8, 1024
TOY_B, TOY_T, TOY_FACTOR = 4, 6, 64
"""At toy size V and H are this many times smaller, and as odd or even as they were."""

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
    minutes: float = float("inf")  # a part begins nothing after so many
    cases: Collection[str] = tuple(CASES)
    rows: list[Row] = field(default_factory=list)  # of all parts

    @property
    def machine(self) -> str:
        """As part of a file's name."""
        return slug("cpu-toy" if self.toy else self.facts["machine"])


@dataclass(frozen=True)
class Suite:
    """Every case of one vocabulary in every mode; on hidden states where there is an H, else on logits."""

    V: int
    masked: float = 0.0
    H: int | None = None

    @property
    def name(self) -> str:
        return ("head-" if self.H else "") + f"v{self.V}" + ("-masked" if self.masked else "")

    @property
    def measures(self) -> str:
        return f"every case on {'hidden states' if self.H else 'logits'}, {self.masked:.0%} of the rows masked"

    @property
    def cost(self) -> str:
        """The memory of policy and reference."""
        elements = (B * T + self.V) * self.H if self.H else B * T * self.V
        return f"{2 * elements * torch.bfloat16.itemsize / 2**30:.1f} GiB of inputs"

    def batch(self, device: torch.device, toy: bool) -> AnyBatch:
        factor, (rows, tokens) = (TOY_FACTOR, (TOY_B, TOY_T)) if toy else (1, (B, T))
        H = self.H and self.H // factor
        return random_batch(rows, tokens, self.V // factor, torch.bfloat16, device, self.masked, H)

    def file(self, session: Session) -> Path:
        """The newest with the session's facts, or a new one with today's date."""
        dates = "[0-9]" * 4 + "-[0-9][0-9]" * 2
        for file in sorted(session.results.glob(f"{session.machine}-{dates}-{self.name}.csv"), reverse=True):
            if agrees(file, session.facts, SAME):
                return file
        file = session.results / f"{session.machine}-{date.today()}-{self.name}.csv"
        write(file, Row, session.facts)
        return file

    def measure(self, file: Path, session: Session) -> bool:
        """Add to the file the comparisons that it lacks, or in which somebody failed; whether it has them all now."""
        deadline = time.monotonic() + 60 * session.minutes
        facts, rows = read(file, Row)
        failed = {(row.case, row.mode) for row in rows if row.note not in FINAL}
        done = {(row.case, row.mode) for row in rows} - failed
        wanted = frozenset[str]().union(*(provider.cases for provider in session.providers)) & {*session.cases}
        cases = [case for case in (HEAD_CASES if self.H else LOGITS_CASES).values() if case.name in wanted]
        missing: list[tuple[Case, Mode]] = [
            (case, mode) for case in cases for mode in case.modes if (case.name, mode) not in done
        ]
        if not missing:
            return True
        batch = self.batch(session.device, session.toy)
        for case, mode in missing:
            if time.monotonic() > deadline:
                return False
            measured = compare(case, mode, batch, session.providers, session.repeats)
            rows = [*(row for row in rows if (row.case, row.mode) != (case.name, mode)), *measured]
            write(file, Row, facts, rows)
        return True
