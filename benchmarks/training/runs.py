"""The figures of one process, and the summary of several."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.measure import percentiles
from benchmarks.tables import Line, percent_range


@dataclass(frozen=True)
class Run:
    """One variant's training run, in a process of its own."""

    variant: str
    turn: int  # every variant has one run a turn
    setting: str
    dtype: str
    examples: int  # of one forward pass: pairs of DPO, else completions
    T: int  # tokens of the longest sequence that may come
    V: int
    objective: str = "dpo"
    lengths: str = ""  # the parameters of their distribution
    accumulation: int = 1
    weights_mib: float = 0.0  # of the policy; a second model has as many
    seconds: list[float] = field(default_factory=list)  # of the wall clock, for every step that was timed
    cpu_seconds: list[float] = field(default_factory=list)  # of the process; on a CPU alone, where it has one thread
    tokens: list[int] = field(default_factory=list)  # of the timed steps: prompts and completions, without padding
    scored: list[int] = field(default_factory=list)  # tokens that the bodies computed in those steps without a gradient
    trained: list[int] = field(default_factory=list)  # and with one; both count padding, and what is hidden by a mask
    peak_mib: float = 0.0  # as benchmarks.measure.PeakMemory has it
    loss: list[float] = field(default_factory=list)  # of every step of the run, as the following
    grad_norm: list[float] = field(default_factory=list)  # before it is clipped
    logps_chosen: list[float] = field(default_factory=list)  # under the policy, mean over the step, nats; not of GRPO
    logps_rejected: list[float] = field(default_factory=list)
    note: str = ""  # why there are no figures

    @property
    def undisturbed(self) -> list[float]:
        """Seconds of the timed steps without those in which other processes had the core."""
        return self.cpu_seconds or self.seconds


@dataclass(frozen=True)
class Summary:
    """All runs of one variant; ranges are the 20th, 50th and 80th percentile.

    On a CPU, seconds are those of the process, which has one thread: an idle machine's wall clock shows the same. Time
    over the plain loss's takes a step's least seconds of all turns over those of the plain loss in the same step: other
    work on the machine adds to a time and never takes from it.
    """

    variant: str
    weights_mib: float
    seconds: tuple[float, float, float] | None = None  # over all steps of all runs
    tokens_per_s: float | None = None  # all tokens over all those seconds
    over_plain: tuple[float, float, float] | None = None  # over the steps
    peak_mib: float | None = None  # median over the runs
    note: str = ""

    @property
    def extra(self) -> float | None:
        """Time over the plain loss's, less 1."""
        return None if self.over_plain is None else self.over_plain[1] - 1

    def cells(self) -> Line:
        over = ""
        if self.seconds and self.over_plain:
            low, median, high = (f"{100 * (ratio - 1):+.1f}" for ratio in self.over_plain)
            over = f"{median} % ({low} to {high})"
        seconds = percent_range(self.seconds, ".2f") if self.seconds else ""
        return {
            "variant": self.variant,
            "s a step, median (20-80 %)": ", ".join(filter(None, (seconds, self.note))),
            "tokens/s": "" if self.tokens_per_s is None else f"{self.tokens_per_s:.0f}",
            "time over plain's (20-80 %)": over,
            "peak MiB": "" if self.peak_mib is None else f"{self.peak_mib:.0f}",
        }


def summaries(runs: Sequence[Run], plain: str) -> list[Summary]:
    """Each variant's, in the order of the runs; a variant with a note in any run has no figures."""
    by_variant: dict[str, list[Run]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, []).append(run)
    beside = least(by_variant.get(plain, []))
    return [_summary(of_variant, beside) for of_variant in by_variant.values()]


def least(runs: Sequence[Run]) -> list[float]:
    """Every step's least seconds of the turns."""
    return [min(of_step) for of_step in zip(*(run.undisturbed for run in runs if not run.note), strict=True)]


def _summary(runs: list[Run], plain: list[float]) -> Summary:
    name, weights_mib = runs[0].variant, runs[0].weights_mib
    if note := next((run.note for run in runs if run.note), ""):
        return Summary(name, weights_mib, note=note)
    seconds = [second for run in runs for second in run.undisturbed]
    ratios = [ours / theirs for ours, theirs in zip(least(runs), plain, strict=False)]
    return Summary(
        name,
        weights_mib,
        percentiles(seconds),
        sum(token for run in runs for token in run.tokens) / sum(seconds),
        percentiles(ratios) if ratios else None,
        statistics.median(run.peak_mib for run in runs),
    )
