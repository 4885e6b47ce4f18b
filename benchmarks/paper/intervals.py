"""Means over seeds with bootstrap intervals, paired by seed where arms are compared."""

import math
from collections.abc import Sequence

from benchmarks.paper.run_rows import Run
from humanline_fused.tiny import Interval, bootstrap


def final(rows: Sequence[Run], **fixed: object) -> list[Run]:
    """Return the rows of the final seeds whose columns have the given values, in order of their seeds."""
    mine = [row for row in rows if row.phase == "final" and all(getattr(row, n) == v for n, v in fixed.items())]
    return sorted(mine, key=lambda row: row.seed)


def mean_reward(rows: Sequence[Run], **fixed: object) -> Interval:
    """Return the final seeds' mean reward with its interval."""
    return bootstrap([row.reward for row in final(rows, **fixed)])


def gain(rows: Sequence[Run], arm: str, over: str, **fixed: object) -> Interval:
    """Return the mean difference of reward between two arms, paired by seed.

    Raises:
        ValueError: the arms have other seeds.
    """
    mine, others = final(rows, arm=arm, **fixed), final(rows, arm=over, **fixed)
    if [row.seed for row in mine] != [row.seed for row in others]:
        raise ValueError(f"expected the same seeds for {arm!r} and {over!r}, got other ones ({fixed})")
    return bootstrap([a.reward - b.reward for a, b in zip(mine, others, strict=True)])


def wins(rows: Sequence[Run], arm: str, over: str, **fixed: object) -> str:
    """Return on how many seeds an arm has a higher reward than another, as ``14/16``."""
    mine, others = final(rows, arm=arm, **fixed), final(rows, arm=over, **fixed)
    return f"{sum(a.reward > b.reward for a, b in zip(mine, others, strict=True))}/{len(mine)}"


def best_of_tuning(rows: Sequence[Run], arms: Sequence[str], **fixed: object) -> str:
    """Return the arm whose best setting has the highest mean reward over all tuning seeds."""
    means: dict[str, float] = {}
    for arm in arms:
        by_setting: dict[tuple[object, ...], list[float]] = {}
        for row in rows:
            if row.phase == "tuning" and row.arm == arm and all(getattr(row, n) == v for n, v in fixed.items()):
                by_setting.setdefault(row.setting, []).append(row.reward)
        most = max(map(len, by_setting.values()))
        means[arm] = max(sum(values) / most for values in by_setting.values() if len(values) == most)
    return max(means, key=means.__getitem__)


TUNED = {
    "learning_rate": "lr {:g}",
    "beta": "β {:g}",
    "epsilon": "ε {:g}",
    "width": "±{:g}",
    "sync_every": "k = {:g}",
    "gamma_P": "γ_P {:g}",
}
"""What arms are tuned over, by column: how a value is written."""


def edges(rows: Sequence[Run]) -> list[str]:
    """Return the tuned arms whose chosen setting has the lowest or highest of three or more tried values, in words.

    A better value may lie beyond it, so the comparison may be unfair to that arm.
    """
    found = []
    for chosen in {(row.objective, row.condition, row.arm): row for row in rows if row.phase == "final"}.values():
        group = (chosen.objective, chosen.condition, chosen.arm)
        tuned = [row for row in rows if row.phase == "tuning" and (row.objective, row.condition, row.arm) == group]
        ends = []
        for column, words in TUNED.items():
            tried, value = {getattr(row, column) for row in tuned} - {None}, getattr(chosen, column)
            if len(tried) > 2 and value in (min(tried), max(tried)):
                ends.append(words.format(value))
        if ends:
            words = [chosen.objective.upper(), chosen.condition, chosen.arm, f"({', '.join(ends)})"]
            found.append(" ".join(filter(None, words)))
    return found


def cpu_seconds(rows: Sequence[Run]) -> float:
    """Return the process seconds of all trainings."""
    return math.fsum(row.cpu_seconds or 0.0 for row in rows)


def effort(rows: Sequence[Run]) -> str:
    """Return how many trainings there were and what they cost, and where the tuning ended at an end of its grid."""
    found = edges(rows)
    more = f" Chosen at an end of what was tried, so perhaps not the best: {'; '.join(found)}." if found else ""
    return f"{len(rows)} runs, {cpu_seconds(rows):.0f} CPU seconds.{more}"
