"""The table of layouts and peers on realistic lengths, and the goals of a step."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.goals import Goal, ratio
from benchmarks.results import Facts
from benchmarks.tables import Line, columns, filled, piped
from benchmarks.training.runs import Run, least
from benchmarks.training.variants import IN_TRL, PADDED, SHARED, TRL, VARIANTS


@dataclass(frozen=True)
class StepCost:
    """One variant's step in one setting."""

    variant: str
    seconds: float | None = None  # mean over the steps of the least of the turns
    peak_mib: float | None = None  # median over the turns
    tokens: float = 0.0  # of a step, real
    scored: float = 0.0  # of a step, in bodies without a gradient
    trained: float = 0.0  # of a step, in bodies with one
    note: str = ""

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "StepCost":
        """Return the cost of a variant's turns; none where one has a note."""
        first = runs[0]
        if note := next((run.note for run in runs if run.note), ""):
            return cls(first.variant, note=note)
        return cls(
            first.variant,
            statistics.mean(least(runs)),
            statistics.median(run.peak_mib for run in runs),
            tokens=statistics.mean(first.tokens),
            scored=statistics.mean(first.scored),
            trained=statistics.mean(first.trained),
        )

    def cells(self, case: str, base: "StepCost | None") -> Line:
        line = {"case": case, "variant": self.variant, "s a step": self.note}
        if self.seconds is None:
            return {**line, **dict.fromkeys(("times padded", "peak MiB", "real tokens", "scored", "trained"), "")}
        times = "" if base is None or base.seconds is None else f"{base.seconds / self.seconds:.2f}"
        sizes = {"peak MiB": self.peak_mib, "real tokens": self.tokens, "scored": self.scored, "trained": self.trained}
        whole = {name: f"{size:.0f}" for name, size in sizes.items()}
        return {**line, "s a step": f"{self.seconds:.2f}", "times padded": times, **whole}


def _faster(than: str, by: float, who: str = SHARED) -> Goal:
    return Goal(f"{who}: times the speed of {than}", ratio("seconds", than, who), by, ".2f")


def _smaller(than: str, share: float, who: str = SHARED) -> Goal:
    return Goal(f"{who}: peak, of that of {than}", ratio("peak_mib", who, than), share, ".2f", at_most=True)


GOALS: dict[str, tuple[Goal, ...]] = {
    "dpo ultrafeedback": (
        _faster(PADDED, 1.8),
        _faster(TRL, 3.0),
        _smaller(PADDED, 0.75),
        _faster(TRL, 1.5, IN_TRL),
        _smaller(TRL, 0.6, IN_TRL),
    ),
    "grpo math8": (_faster(PADDED, 2.1),),
    "grpo math16": (_faster(PADDED, 2.1),),
    "kto ultrafeedback": (_faster(PADDED, 1.4),),
    "dpo equal": (_faster(PADDED, 0.98),),
}


def costs(runs: Sequence[Run]) -> dict[str, dict[str, StepCost]]:
    """The cost of every variant by setting, in the documents' order, in whichever they ran."""
    found: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(runs, key=_place):
        found.setdefault(run.setting, {}).setdefault(run.variant, []).append(run)
    return {
        setting: {name: StepCost.of(turns) for name, turns in variants.items()} for setting, variants in found.items()
    }


def _place(run: Run) -> tuple[int, int]:
    case, cases = case_of(run.setting), [*GOALS]
    return cases.index(case) if case in cases else len(cases), [variant.name for variant in VARIANTS].index(run.variant)


def case_of(setting: str) -> str:
    """A setting's name without its model's."""
    return setting.split(" ", 1)[1]


def lines(runs: Sequence[Run]) -> list[Line]:
    return [
        cost.cells(case_of(setting), variants.get(PADDED))
        for setting, variants in costs(runs).items()
        for cost in variants.values()
    ]


def judged(runs: Sequence[Run]) -> list[Line]:
    return [
        {"case": case_of(setting), "goal": goal.name, **goal.cells(variants)}
        for setting, variants in costs(runs).items()
        for goal in GOALS.get(case_of(setting), ())
    ]


def text(runs: Sequence[Run]) -> str:
    """The variants and the goals, for a terminal."""
    return f"{columns(filled(lines(runs)))}\n\n{columns(judged(runs))}"


def markdown(facts: Facts, runs: Sequence[Run], name: str, words: Sequence[str]) -> str:
    """The variants, the goals, and where the figures come from; with the word ``row`` one row of the first setting."""
    first = runs[0]
    machine = f"{facts['machine']}; torch {facts['torch']}; transformers {facts['transformers']}"
    if "row" in words:
        return "\n\n".join([piped([_row(runs)]), f"`{name}`: {machine}; one thread."])
    works = {run.setting: run for run in runs}
    parameters = "; ".join(f"**{case_of(setting)}**: {_work(run)}" for setting, run in works.items())
    turns = len({run.turn for run in runs})
    source = (
        f"`{name}`: {machine}; V={first.V}, {first.dtype}, weights of {first.weights_mib:.0f} MiB; {turns} "
        f"process{'es' * (turns > 1)} each; timed steps: {facts['timed steps']}. A step: {parameters}."
    )
    return "\n\n".join([piped(filled(lines(runs))), piped(judged(runs)), source])


def _work(run: Run) -> str:
    kind = "pairs" if run.objective == "dpo" else "completions"
    return f"{run.accumulation} x {run.examples} {kind}, {run.lengths}"


def _row(runs: Sequence[Run]) -> Line:
    setting, variants = next(iter(costs(runs).items()))
    ours, trl, padded = (variants.get(name) for name in (SHARED, TRL, PADDED))

    def over(other: Any, field: str) -> str:
        theirs, own = getattr(other, field, None), getattr(ours, field, None)
        return "" if theirs is None or own is None else f"{theirs / own:.2f}x"

    line = {"case": case_of(setting), "s a step": "" if ours is None or ours.seconds is None else f"{ours.seconds:.1f}"}
    for name, other in ((TRL, trl), ("padded", padded)):
        line |= {f"speed over {name}": over(other, "seconds"), f"peak of {name} over ours": over(other, "peak_mib")}
    return line
