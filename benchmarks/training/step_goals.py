"""What a training step is meant to cost, beside what was measured."""

from collections.abc import Callable, Sequence

from benchmarks.goals import Goal
from benchmarks.training.runs import Summary
from benchmarks.training.variants import COPY, LOOKAHEAD, PLAIN, TRL

Summaries = dict[str, Summary]
"""By the variant's name."""


def over_plain(variant: str) -> Callable[[Summaries], float | None]:
    """Time over the plain loss's, less 1."""

    def figure(summaries: Summaries) -> float | None:
        summary = summaries.get(variant)
        return None if summary is None or summary.over_plain is None else summary.over_plain[1] - 1

    return figure


def saved_mib(than: str) -> Callable[[Summaries], float | None]:
    """By how much the look-ahead's peak is lower than another's."""

    def figure(summaries: Summaries) -> float | None:
        ours, theirs = summaries.get(LOOKAHEAD), summaries.get(than)
        if ours is None or theirs is None or ours.peak_mib is None or theirs.peak_mib is None:
            return None
        return theirs.peak_mib - ours.peak_mib

    return figure


def saved_models(than: str) -> Callable[[Summaries], float | None]:
    """The same in weights of a model."""

    def figure(summaries: Summaries) -> float | None:
        saved = saved_mib(than)(summaries)
        return None if saved is None else saved / summaries[LOOKAHEAD].weights_mib

    return figure


def tokens_per_s_over(than: str) -> Callable[[Summaries], float | None]:
    """The look-ahead's tokens/s over another's."""

    def figure(summaries: Summaries) -> float | None:
        ours, theirs = summaries.get(LOOKAHEAD), summaries.get(than)
        if ours is None or theirs is None or ours.tokens_per_s is None or theirs.tokens_per_s is None:
            return None
        return ours.tokens_per_s / theirs.tokens_per_s

    return figure


ANYWHERE = (
    Goal("look-ahead, time over the plain loss", over_plain(LOOKAHEAD), 0.02, "+.1%", at_most=True),
    Goal("copy, time over the plain loss", over_plain(COPY), 0.02, "+.1%", at_most=True),
    # a twentieth for the allocator, whose resident pages are counted on a CPU
    Goal("look-ahead, peak below the plain loss, in models", saved_models(PLAIN), 0.95, ".2f"),
)

GPU = (
    *ANYWHERE,
    Goal("look-ahead, times TRL's tokens/s", tokens_per_s_over(TRL), 1.15, ".2f"),
    Goal("look-ahead, MiB of peak below TRL", saved_mib(TRL), 3 * 1024, ".0f"),
)

HEADER = ("goal", "measured", "wanted", "")


def table(summaries: Sequence[Summary], goals: Sequence[Goal]) -> list[tuple[str, ...]]:
    by_name = {summary.variant: summary for summary in summaries}
    return [HEADER, *((goal.name, *goal.cells(by_name)) for goal in goals)]
