"""What is meant to be reached, beside what was measured: on logits here, on hidden states in ``head_goals.py``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.kernels.providers import DEFAULT, HALOS, OURS, TRL
from benchmarks.results import Row

LARGEST = 262_144

Figures = dict[tuple[str, str, str], Row]
"""Rows of one shape by case, mode and provider."""


@dataclass(frozen=True)
class Goal:
    """
    Attributes:
        figure: what is looked at, of what :func:`table` is given by name; None where it was not measured.
        bound: it has to be at least this, or at most this if ``at_most``.
        form: how the two are printed.
        vocabularies: the goal holds for V in this range.
        nothing_masked: it holds only where every row counts that has a target.
    """

    name: str
    figure: Callable[[Any], float | None]
    bound: float
    form: str = ".0%"
    at_most: bool = False
    vocabularies: range = range(LARGEST + 1)
    nothing_masked: bool = False

    def holds_for(self, row: Row) -> bool:
        """Whether it says something of the row's shape."""
        return row.V in self.vocabularies and not (self.nothing_masked and row.rows < row.B * (row.T - 1))

    def cells(self, figures: Any) -> tuple[str, str, str]:
        """What was measured, the goal, and whether it was met."""
        measured = self.figure(figures)
        goal = f"{'<=' if self.at_most else '>='} {self.bound:{self.form}}"
        if measured is None:
            return "", goal, "not measured"
        met = measured <= self.bound if self.at_most else measured >= self.bound
        return f"{measured:{self.form}}", goal, "met" if met else "missed"


def ceiling(case: str, mode: str) -> Callable[[Figures], float | None]:
    """Share of the ceiling that was measured in the same turns."""

    def figure(figures: Figures) -> float | None:
        row = figures.get((case, mode, OURS))
        return row and row.ceiling_share

    return figure


def faster(case: str, mode: str, than: str) -> Callable[[Figures], float | None]:
    """How many times faster than another provider of the same comparison."""

    def figure(figures: Figures) -> float | None:
        ours, theirs = (figures.get((case, mode, provider)) for provider in (OURS, than))
        if ours is None or theirs is None or ours.ms_median is None or theirs.ms_median is None:
            return None
        return theirs.ms_median / ours.ms_median

    return figure


def memory(case: str, dlogits: int) -> Callable[[Figures], float | None]:
    """Peak beyond the inputs, and beyond dlogits where it is apart from them, in tensors of logits."""

    def figure(figures: Figures) -> float | None:
        row = figures.get((case, "full", OURS))
        return None if row is None or row.peak_mib is None else row.peak_mib / row.logits_mib - dlogits

    return figure


GOALS = (
    Goal("log-prob forward, of the ceiling", ceiling("logp", "nograd"), 0.93),
    Goal("exact softcap log-prob forward, of the ceiling", ceiling("logp_softcap", "nograd"), 0.50),
    Goal("DPO, of the ceiling", ceiling("dpo", "full"), 0.90),
    Goal("KTO, of the ceiling", ceiling("kto", "full"), 0.90),
    Goal(
        "GRPO in one launch, of the ceiling",
        ceiling("grpo_one_launch", "full"),
        0.85,
        vocabularies=range(64 * 1024),
    ),
    Goal(
        "GRPO in one launch, of the ceiling",
        ceiling("grpo_one_launch", "full"),
        0.80,
        vocabularies=range(64 * 1024, 152 * 1024),
    ),
    Goal("GRPO in one launch, times as fast as in two", faster("grpo_one_launch", "full", DEFAULT), 1.0, ".2f"),
    Goal("DPO, times as fast as eager", faster("dpo", "full", HALOS), 4.0, ".1f"),
    Goal("KTO, times as fast as eager", faster("kto", "full", HALOS), 4.0, ".1f"),
    Goal("GRPO in one launch, times as fast as eager", faster("grpo_one_launch", "full", HALOS), 5.0, ".1f"),
    Goal("DPO, times as fast as TRL's kernel", faster("dpo", "full", TRL), 1.1, ".2f"),
    Goal("KTO, times as fast as TRL's kernel", faster("kto", "full", TRL), 1.1, ".2f"),
    Goal("GRPO, times as fast as TRL's kernel", faster("grpo", "full", TRL), 1.1, ".2f"),
    Goal("DPO, memory beyond dlogits, of one logits tensor", memory("dpo", 1), 0.01, ".2%", at_most=True),
    Goal("KTO, memory beyond dlogits, of one logits tensor", memory("kto", 1), 0.01, ".2%", at_most=True),
    Goal("GRPO, memory beyond dlogits, of one logits tensor", memory("grpo", 1), 0.01, ".2%", at_most=True),
    Goal(
        "GRPO in one launch, memory beyond dlogits",
        memory("grpo_one_launch", 1),
        0.01,
        ".2%",
        at_most=True,
    ),
    Goal("DPO in place, memory, of one logits tensor", memory("dpo_inplace", 0), 0.01, ".2%", at_most=True),
)

HEADER = ("goal", "V", "rows", "measured", "wanted", "")


def table(rows: Sequence[Row], goals: Sequence[Goal] = GOALS) -> list[tuple[str, ...]]:
    """Every goal at every shape that was measured."""
    shapes: dict[tuple[int | None, ...], list[Row]] = {}
    for row in rows:
        shapes.setdefault((row.V, row.H, row.rows), []).append(row)
    figures = [(alike[0], {(row.case, row.mode, row.provider): row for row in alike}) for alike in shapes.values()]
    return [
        (goal.name, str(row.V), str(row.rows), *goal.cells(of_shape))
        for goal in goals
        for row, of_shape in figures
        if goal.holds_for(row)
    ]
