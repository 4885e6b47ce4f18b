"""What the losses on hidden states are meant to reach, on a GPU and on a CPU."""

from collections.abc import Callable, Iterator

from benchmarks.goals import Figures, Goal, faster
from benchmarks.kernels.head import HEAD_CASES
from benchmarks.kernels.providers import CCE, CCE_UNFILTERED, HALOS, LIGER_LINEAR, OURS, TORCH, TRL_CHUNKED
from benchmarks.results import Row

GIB = 2**30


def over_products(case: str, mode: str) -> Callable[[Figures], float | None]:
    """Time over that of the bare products, measured in the same turns."""

    def figure(figures: Figures) -> float | None:
        row = figures.get((case, mode, OURS))
        return None if row is None or not row.ceiling_share else 1 / row.ceiling_share

    return figure


def workspace_bytes(row: Row) -> int:
    """What ``LMHead`` takes by default on a GPU that has the memory."""
    return min(max(2 * GIB, 4096 * row.V * row.itemsize), 4 * GIB)


def over_workspace(case: str, mode: str) -> Callable[[Figures], float | None]:
    """Peak beyond the inputs, their gradients and the float32 accumulator, in workspaces.

    Weights that are trained on more than one chunk have an accumulator; where one workspace holds the logits of every
    row there is none.
    """

    def figure(figures: Figures) -> float | None:
        row = figures.get((case, mode, OURS))
        if row is None or row.peak_mib is None or row.H is None:
            return None
        workspace, trained = workspace_bytes(row), row.V * row.H if mode == "full" else 0
        gradients = (row.B * row.T * row.H + trained) * row.itemsize
        accumulator = 4 * trained if row.rows * row.V * row.itemsize > workspace else 0
        return (row.peak_mib * 2**20 - gradients - accumulator) / workspace

    return figure


def share_of_peak(case: str, mode: str, of: str) -> Callable[[Figures], float | None]:
    """Peak over another provider's of the same comparison."""

    def figure(figures: Figures) -> float | None:
        ours, theirs = (figures.get((case, mode, provider)) for provider in (OURS, of))
        if ours is None or theirs is None or ours.peak_mib is None or not theirs.peak_mib:
            return None
        return ours.peak_mib / theirs.peak_mib

    return figure


def _name(case: str, mode: str) -> str:
    words = ["hidden", *case.removeprefix("head_").split("_")]
    return " ".join([*words, *(["frozen"] if mode == "frozen" else [])])


def _gpu() -> Iterator[Goal]:
    losses = [case for case in HEAD_CASES.values() if case.operation != "logp"]
    clamped = [case for case in losses if not case.name.endswith("unclamped")]
    for case in losses:
        for mode in ("frozen", "full"):
            name, reference_inside = _name(case.name, mode), not case.given
            bound = 1.12 if mode == "full" and not reference_inside else 1.10
            figure = over_products(case.name, mode)
            yield Goal(f"{name}, time over the bare products", figure, bound, ".2f", at_most=True)
    for case in clamped:
        for mode in ("frozen", "full"):
            bound = 1.4 if mode == "frozen" else 1.25 if case.given else 1.15
            only = mode == "full" and not case.given
            name = f"{_name(case.name, mode)}, times as fast as TRL's chunks"
            yield Goal(name, faster(case.name, mode, TRL_CHUNKED), bound, ".2f", nothing_masked=only)
    for case in ("head_dpo_unclamped", "head_grpo_unclamped"):
        for mode in ("frozen", "full"):
            yield Goal(f"{_name(case, mode)}, times as fast as Liger", faster(case, mode, LIGER_LINEAR), 3.0, ".1f")
    for case in ("head_dpo_given", "head_dpo_peaked"):
        for mode in ("frozen", "full"):
            for than in (CCE, CCE_UNFILTERED, TORCH):
                yield Goal(f"{_name(case, mode)}, times as fast as {than}", faster(case, mode, than), 1.15, ".2f")
    for case in clamped:
        for mode in ("frozen", "full"):
            figure = over_workspace(case.name, mode)
            yield Goal(f"{_name(case.name, mode)}, memory, in workspaces", figure, 1.10, ".2f", at_most=True)


def _cpu() -> Iterator[Goal]:
    for case in HEAD_CASES.values():
        for mode in ("frozen", "full"):
            name = _name(case.name, mode)
            figure = share_of_peak(case.name, mode, HALOS)
            yield Goal(f"{name}, peak, of eager's", figure, 0.25, ".2f", at_most=True)
            yield Goal(f"{name}, times as fast as eager", faster(case.name, mode, HALOS), 1.0, ".2f")


GPU, CPU = tuple(_gpu()), tuple(_cpu())
