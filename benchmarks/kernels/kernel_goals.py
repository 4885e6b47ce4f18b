"""The goals of the losses, on logits and on hidden states, on a GPU and on a CPU. Figures are rows by case, mode and
provider."""

from collections.abc import Iterator, Sequence
from itertools import product

from benchmarks.goals import ANY_V, Figure, Goal, number, ratio
from benchmarks.kernels import providers as by
from benchmarks.kernels.cases import HEAD_CASES, Mode
from benchmarks.kernels.figures import Row
from benchmarks.tables import Line

SHORT_V, LONG_V = range(64 * 1024), range(64 * 1024, 152 * 1024)
SPEED = (
    ("dpo", "dpo", "DPO", {ANY_V: 0.90}, 4.0),
    ("kto", "kto", "KTO", {ANY_V: 0.90}, 4.0),
    ("grpo", "grpo_one_launch", "GRPO in one launch", {SHORT_V: 0.85, LONG_V: 0.80}, 5.0),
)
"""Each loss; its fastest case and that one's name; the least share of the ceiling, by vocabulary, and times eager."""

LARGE = 4096
HIDDEN_SIZES = LARGE, 1536, 896
PASS = 184
"""One pass over logits of 2 bytes, at 4.3 TB/s, costs this over H of a product, at 790 TFLOP/s: assumed of an H200.

A pass of an H100 costs more of its product, so these goals are harder there.
"""

REST = 0.05  # of the products' time: rows gathered and scattered, and sums over chunks


def of_ours(case: str, mode: str, name: str) -> Figure:
    return number((case, mode, by.OURS), name)


def faster(case: str, mode: str, than: str) -> Figure:
    """How many times faster than another provider of the same comparison."""
    return ratio("ms_median", (case, mode, than), (case, mode, by.OURS))


def _logits_goals() -> Iterator[Goal]:
    def memory(case: str, name: str) -> Goal:
        return Goal(name, of_ours(case, "full", "beyond_dlogits"), 0.01, ".2%", at_most=True)

    yield Goal("log-prob forward, of the ceiling", of_ours("logp", "nograd", "ceiling_share"), 0.93)
    softcap = of_ours("logp_softcap", "nograd", "ceiling_share")
    yield Goal("exact softcap log-prob forward, of the ceiling", softcap, 0.50)
    for loss, case, name, of_ceiling, times_eager in SPEED:
        for vocabularies, bound in of_ceiling.items():
            share = of_ours(case, "full", "ceiling_share")
            yield Goal(f"{name}, of the ceiling", share, bound, vocabularies=vocabularies)
        yield Goal(f"{name}, times as fast as eager", faster(case, "full", by.HALOS), times_eager, ".1f")
        yield Goal(f"{loss.upper()}, times as fast as TRL's kernel", faster(loss, "full", by.TRL), 1.1, ".2f")
        yield memory(loss, f"{loss.upper()}, memory beyond dlogits, of one logits tensor")
    one_launch = "grpo_one_launch"
    yield Goal("GRPO in one launch, times as fast as in two", faster(one_launch, "full", by.DEFAULT), 1.0, ".2f")
    yield memory(one_launch, "GRPO in one launch, memory beyond dlogits")
    yield memory("dpo_inplace", "DPO in place, memory, of one logits tensor")


def _name(case: str, mode: str) -> str:
    words = ["hidden", *case.removeprefix("head_").split("_")]
    return " ".join([*words, *(["frozen"] if mode == "frozen" else [])])


def of_products(passes: int, products: int, H: int) -> float:
    """Time over the bare products that the model allows: a pass over the logits costs PASS / H of a product."""
    return 1 + PASS / H * passes / products + REST


def _head_goals() -> Iterator[Goal]:
    trained = [case for case in HEAD_CASES.values() if case.has_reference]
    modes: tuple[Mode, ...] = "frozen", "full"
    for case, mode in product(trained, modes):
        name, with_gradients = _name(case.name, mode), mode == "full"
        over, passes = of_ours(case.name, mode, "over_ceiling"), 2 if case.given else 3
        for H in HIDDEN_SIZES:
            bound = of_products(passes, case.products[mode], H)
            yield Goal(f"{name}, time over the bare products", over, bound, ".2f", at_most=True, H=H)
        if case.name.endswith("unclamped"):
            yield Goal(f"{name}, times as fast as Liger", faster(case.name, mode, by.LIGER_LINEAR), 3.0, ".1f", H=LARGE)
            continue
        bound = 1.4 if mode == "frozen" else 1.25 if case.given else 1.15
        figure, inside = faster(case.name, mode, by.TRL_CHUNKED), with_gradients and not case.given
        yield Goal(f"{name}, times as fast as TRL's chunks", figure, bound, ".2f", nothing_masked=inside, H=LARGE)
        yield Goal(f"{name}, memory, in workspaces", of_ours(case.name, mode, "workspaces"), 1.10, ".2f", at_most=True)
    for case, mode in ((case, mode) for case in ("head_dpo_given", "head_dpo_peaked") for mode in ("frozen", "full")):
        for peer in (by.CCE, by.CCE_UNFILTERED, by.TORCH):
            yield Goal(f"{_name(case, mode)}, times as fast as {peer}", faster(case, mode, peer), 1.15, ".2f", H=LARGE)
    # As many products; a cross-entropy's gradient is known with its log-prob, a pair's or a group's as well.
    ours = "head_grpo_given", "full", by.OURS
    # The epilogue spares both passes over the logits, which cost most where a product is cheapest.
    spared = of_products(2, HEAD_CASES["head_cross_entropy"].products["full"], min(HIDDEN_SIZES))
    for peer, least in ((by.QUACK_CHUNKED, 1.0), (by.LIGER_CUTE, 1.0), (by.QUACK_EPILOGUE, 1 / spared)):
        figure = ratio("ms_median", ("head_cross_entropy", "full", peer), ours)
        yield Goal(f"hidden grpo given, times as fast as a cross-entropy by {peer}", figure, least, ".2f")


def _cpu_goals() -> Iterator[Goal]:
    for case in HEAD_CASES:
        for mode in ("frozen", "full"):
            name, peak = _name(case, mode), ratio("peak_mib", (case, mode, by.OURS), (case, mode, by.HALOS))
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
        {"goal": goal.name, "V": str(row.V), "H": str(row.H or ""), "rows": str(row.rows), **goal.cells(of_shape)}
        for goal in goals
        for row, of_shape in figures
        if goal.applies_to(row)
    ]
