"""The goals of the losses, on logits and on hidden states, on a GPU and on a CPU. Figures are rows by case, mode and
provider."""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.goals import Figure, Figures, Goal, measured, ratio
from benchmarks.kernels import providers as by
from benchmarks.kernels.cases import HEAD_CASES
from benchmarks.kernels.figures import Row
from benchmarks.measure import MIB
from benchmarks.objectives import OBJECTIVES
from benchmarks.tables import Line

GIB = 2**30


def of_ceiling(case: str, mode: str) -> Figure:
    """Share of the ceiling that was measured in the same turns."""
    return lambda rows: measured(rows, (case, mode, by.OURS), "ceiling_share")


def over_products(case: str, mode: str) -> Figure:
    """Time over that of the bare products, measured in the same turns."""
    return lambda rows: 1 / measured(rows, (case, mode, by.OURS), "ceiling_share")


def faster(case: str, mode: str, than: str) -> Figure:
    """How many times faster than another provider of the same comparison."""
    return ratio("ms_median", (case, mode, than), (case, mode, by.OURS))


def share_of_peak(case: str, mode: str, of: str) -> Figure:
    """Peak over another provider's of the same comparison."""
    return ratio("peak_mib", (case, mode, by.OURS), (case, mode, of))


def memory(case: str, dlogits: int) -> Figure:
    """Peak beyond the inputs, and beyond dlogits where it is apart from them, in tensors of logits."""
    key = case, "full", by.OURS
    return lambda rows: measured(rows, key, "peak_mib") / measured(rows, key, "logits_mib") - dlogits


def over_workspace(case: str, mode: str) -> Figure:
    """Peak beyond the inputs, their gradients and the float32 accumulator, in workspaces.

    Weights that are trained on more than one chunk have an accumulator; where one workspace holds the logits of every
    row there is none.
    """

    def figure(rows: Figures) -> float:
        key = case, mode, by.OURS
        peak, H = measured(rows, key, "peak_mib") * MIB, int(measured(rows, key, "H"))
        row: Any = rows.get(key)
        workspace, trained = workspace_bytes(row), row.V * H if mode == "full" else 0
        gradients = (row.B * row.T * H + trained) * row.itemsize
        accumulator = 4 * trained if row.rows * row.V * row.itemsize > workspace else 0
        return (peak - gradients - accumulator) / workspace

    return figure


def workspace_bytes(row: Row) -> int:
    """The default of ``LMHead`` on a GPU that has the memory."""
    return min(max(2 * GIB, 4096 * row.V * row.itemsize), 4 * GIB)


def _logits_goals() -> Iterator[Goal]:
    yield Goal("log-prob forward, of the ceiling", of_ceiling("logp", "nograd"), 0.93)
    yield Goal("exact softcap log-prob forward, of the ceiling", of_ceiling("logp_softcap", "nograd"), 0.50)
    for case, objective in OBJECTIVES.items():
        goals = objective.goals
        share, eager = of_ceiling(goals.case, "full"), faster(goals.case, "full", by.HALOS)
        for vocabularies, bound in goals.of_ceiling.items():
            yield Goal(f"{goals.name}, of the ceiling", share, bound, vocabularies=vocabularies)
        yield Goal(f"{goals.name}, times as fast as eager", eager, goals.times_eager, ".1f")
        yield Goal(f"{case.upper()}, times as fast as TRL's kernel", faster(case, "full", by.TRL), 1.1, ".2f")
        name = f"{case.upper()}, memory beyond dlogits, of one logits tensor"
        yield Goal(name, memory(case, 1), 0.01, ".2%", at_most=True)
    one_launch = "grpo_one_launch"
    yield Goal("GRPO in one launch, times as fast as in two", faster(one_launch, "full", by.DEFAULT), 1.0, ".2f")
    yield Goal("GRPO in one launch, memory beyond dlogits", memory(one_launch, 1), 0.01, ".2%", at_most=True)
    yield Goal("DPO in place, memory, of one logits tensor", memory("dpo_inplace", 0), 0.01, ".2%", at_most=True)


def _name(case: str, mode: str) -> str:
    words = ["hidden", *case.removeprefix("head_").split("_")]
    return " ".join([*words, *(["frozen"] if mode == "frozen" else [])])


def _head_goals() -> Iterator[Goal]:
    trained = [case for case in HEAD_CASES.values() if case.has_reference]
    for case, mode in ((case, mode) for case in trained for mode in ("frozen", "full")):
        name, with_gradients = _name(case.name, mode), mode == "full"
        bound = 1.12 if with_gradients and case.given else 1.10
        yield Goal(f"{name}, time over the bare products", over_products(case.name, mode), bound, ".2f", at_most=True)
        if case.name.endswith("unclamped"):
            yield Goal(f"{name}, times as fast as Liger", faster(case.name, mode, by.LIGER_LINEAR), 3.0, ".1f")
            continue
        bound = 1.4 if mode == "frozen" else 1.25 if case.given else 1.15
        figure, inside = faster(case.name, mode, by.TRL_CHUNKED), with_gradients and not case.given
        yield Goal(f"{name}, times as fast as TRL's chunks", figure, bound, ".2f", nothing_masked=inside)
        yield Goal(f"{name}, memory, in workspaces", over_workspace(case.name, mode), 1.10, ".2f", at_most=True)
    for case, mode in ((case, mode) for case in ("head_dpo_given", "head_dpo_peaked") for mode in ("frozen", "full")):
        for peer in (by.CCE, by.CCE_UNFILTERED, by.TORCH):
            yield Goal(f"{_name(case, mode)}, times as fast as {peer}", faster(case, mode, peer), 1.15, ".2f")


def _cpu_goals() -> Iterator[Goal]:
    for case in HEAD_CASES:
        for mode in ("frozen", "full"):
            name, peak = _name(case, mode), share_of_peak(case, mode, by.HALOS)
            yield Goal(f"{name}, peak, of eager's", peak, 0.25, ".2f", at_most=True)
            yield Goal(f"{name}, times as fast as eager", faster(case, mode, by.HALOS), 1.0, ".2f")


LOGITS_GOALS, HEAD_GOALS, HEAD_GOALS_ON_A_CPU = tuple(_logits_goals()), tuple(_head_goals()), tuple(_cpu_goals())


def judged(rows: Sequence[Row], goals: Sequence[Goal]) -> list[Line]:
    """Every goal at every shape that was measured."""
    shapes: dict[tuple[int | None, ...], list[Row]] = {}
    for row in rows:
        shapes.setdefault((row.V, row.H, row.rows), []).append(row)
    figures = [(alike[0], {(row.case, row.mode, row.provider): row for row in alike}) for alike in shapes.values()]
    return [
        {"goal": goal.name, "V": str(row.V), "rows": str(row.rows), **goal.cells(of_shape)}
        for goal in goals
        for row, of_shape in figures
        if goal.applies_to(row)
    ]
