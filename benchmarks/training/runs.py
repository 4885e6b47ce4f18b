"""What one process measured, the file that keeps it, and what several of them come to."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Run:
    """One variant's training run, in a process of its own.

    ``seconds``, ``cpu_seconds`` and ``tokens`` have an entry for every step that was timed, the other lists one for
    every step of the run.

    Attributes:
        turn: every variant has one run a turn.
        weights_mib: of the policy; a second model has as many.
        seconds: of the wall clock.
        cpu_seconds: of the process; on a CPU alone, where it has one thread.
        tokens: prompt and completion of both sequences of the step's pairs, without padding.
        peak_mib: as :class:`benchmarks.training.memory.PeakMemory` has it.
        grad_norm: before it is clipped.
        logps_chosen, logps_rejected: the completion's log-prob under the policy, mean over the step's pairs, nats.
        note: why there are no figures.
    """

    variant: str
    turn: int
    setting: str
    dtype: str
    pairs: int
    T: int
    V: int
    weights_mib: float = 0.0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    peak_mib: float = 0.0
    loss: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    logps_chosen: list[float] = field(default_factory=list)
    logps_rejected: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def undisturbed(self) -> list[float]:
        """Seconds of the timed steps without those in which other processes had the core."""
        return self.cpu_seconds or self.seconds


TYPES = get_type_hints(Run)


def _text(value: Any) -> Any:
    return " ".join(map(repr, value)) if isinstance(value, list) else value


def _value(name: str, text: str) -> Any:
    kind = TYPES[name]
    item = {list[int]: int, list[float]: float}.get(kind)
    return kind(text) if item is None else [item(word) for word in text.split()]


def write(path: Path, facts: dict[str, str], runs: Sequence[Run] = ()) -> None:
    """Facts as ``# name: value`` lines, then the runs."""
    lines = io.StringIO()
    lines.writelines(f"# {name}: {value}\n" for name, value in facts.items())
    table = csv.DictWriter(lines, [column.name for column in fields(Run)])
    table.writeheader()
    table.writerows({name: _text(value) for name, value in asdict(run).items()} for run in runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines.getvalue(), newline="")


def read(path: Path) -> tuple[dict[str, str], list[Run]]:
    lines = path.read_text().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    table = csv.DictReader(line for line in lines if not line.startswith("# "))
    return facts, [Run(**{name: _value(name, text) for name, text in row.items()}) for row in table]


@dataclass(frozen=True)
class Summary:
    """All runs of one variant.

    Attributes:
        seconds: of a step; 20th, 50th and 80th percentile over all steps of all runs. On a CPU of the process, which
            has one thread: what an idle machine's wall clock shows.
        tokens_per_s: all tokens over all those seconds.
        over_plain: a step's least seconds of all turns over those of the plain loss in the same step; percentiles over
            the steps. What else the machine does adds to a time and never takes from it.
        peak_mib: median over the runs.
    """

    variant: str
    weights_mib: float
    seconds: tuple[float, float, float] | None = None
    tokens_per_s: float | None = None
    over_plain: tuple[float, float, float] | None = None
    peak_mib: float | None = None
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        if self.seconds is None or self.over_plain is None:
            over = ""
        else:
            low, median, high = (f"{100 * (ratio - 1):+.1f}" for ratio in self.over_plain)
            over = f"{median} % ({low} to {high})"
        seconds = "" if self.seconds is None else "{1:.2f} ({0:.2f}-{2:.2f})".format(*self.seconds)
        return (
            self.variant,
            ", ".join(filter(None, (seconds, self.note))),
            "" if self.tokens_per_s is None else f"{self.tokens_per_s:.0f}",
            over,
            "" if self.peak_mib is None else f"{self.peak_mib:.0f}",
        )


HEADER = ("variant", "s a step, median (20-80 %)", "tokens/s", "time over plain's (20-80 %)", "peak MiB")


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 20th, the 50th and the 80th."""
    low, _, _, high = statistics.quantiles(values, n=5, method="inclusive")
    return low, statistics.median(values), high


def summaries(runs: Sequence[Run], plain: str) -> list[Summary]:
    """Each variant's, in the order of the runs; a variant with a note in any run has no figures."""
    by_variant: dict[str, list[Run]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, []).append(run)
    beside = _least(by_variant.get(plain, []))
    return [_summary(name, of_variant, beside) for name, of_variant in by_variant.items()]


def _least(runs: Sequence[Run]) -> list[float]:
    """Every step's least seconds."""
    return [min(of_step) for of_step in zip(*(run.undisturbed for run in runs if not run.note), strict=True)]


def _summary(name: str, runs: list[Run], plain: list[float]) -> Summary:
    note = next((run.note for run in runs if run.note), "")
    if note:
        return Summary(name, runs[0].weights_mib, note=note)
    seconds = [second for run in runs for second in run.undisturbed]
    ratios = [ours / theirs for ours, theirs in zip(_least(runs), plain, strict=False)]
    return Summary(
        name,
        runs[0].weights_mib,
        percentiles(seconds),
        sum(token for run in runs for token in run.tokens) / sum(seconds),
        percentiles(ratios) if ratios else None,
        statistics.median(run.peak_mib for run in runs),
    )
