"""The goals of a training step. Figures are :class:`benchmarks.training.runs.Summary` by the variant's name."""

from collections.abc import Sequence

from benchmarks.goals import Figure, Goal, measured, ratio
from benchmarks.tables import Line
from benchmarks.training.runs import Summary
from benchmarks.training.variants import COPY, LOOKAHEAD, PLAIN, TRL


def over_plain(variant: str) -> Figure:
    """Time over the plain loss's, less 1."""
    return lambda summaries: measured(summaries, variant, "extra")


def saved_mib(than: str) -> Figure:
    """By how much the look-ahead's peak is lower than another's."""
    return lambda summaries: measured(summaries, than, "peak_mib") - measured(summaries, LOOKAHEAD, "peak_mib")


def saved_models(than: str) -> Figure:
    """The same in weights of a model."""
    return lambda summaries: saved_mib(than)(summaries) / summaries[LOOKAHEAD].weights_mib


def tokens_per_s_over(than: str) -> Figure:
    """The look-ahead's tokens/s over another's."""
    return ratio("tokens_per_s", LOOKAHEAD, than)


STEP_GOALS = (
    Goal("look-ahead, time over the plain loss", over_plain(LOOKAHEAD), 0.02, "+.1%", at_most=True),
    Goal("copy, time over the plain loss", over_plain(COPY), 0.02, "+.1%", at_most=True),
    # a twentieth for the allocator, whose resident pages are counted on a CPU
    Goal("look-ahead, peak below the plain loss, in models", saved_models(PLAIN), 0.95, ".2f"),
)

STEP_GOALS_ON_A_GPU = (
    *STEP_GOALS,
    Goal("look-ahead, times TRL's tokens/s", tokens_per_s_over(TRL), 1.15, ".2f"),
    Goal("look-ahead, MiB of peak below TRL", saved_mib(TRL), 3 * 1024, ".0f"),
)


def judged(summaries: Sequence[Summary], on_gpu: bool) -> list[Line]:
    by_name = {summary.variant: summary for summary in summaries}
    return [{"goal": goal.name, **goal.cells(by_name)} for goal in (STEP_GOALS_ON_A_GPU if on_gpu else STEP_GOALS)]
