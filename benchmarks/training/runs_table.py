"""The goals of a training step, and the tables of a file of runs. Figures are summaries by the variant's name."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.goals import Figure, Goal, number, ratio
from benchmarks.results import read
from benchmarks.tables import Line, columns, piped
from benchmarks.training import layouts_table
from benchmarks.training.runs import Run, Summary, summaries
from benchmarks.training.setting import TOY
from benchmarks.training.variants import COPY, LOOKAHEAD, PLAIN, SYNCED_TRL


def saved_mib(than: str) -> Figure:
    """By how much the look-ahead's peak is lower than another's."""
    return lambda summaries: number(than, "peak_mib")(summaries) - number(LOOKAHEAD, "peak_mib")(summaries)


def saved_models(than: str) -> Figure:
    """The same in weights of a model."""
    return lambda summaries: saved_mib(than)(summaries) / summaries[LOOKAHEAD].weights_mib


STEP_GOALS = (
    Goal("look-ahead, time over the plain loss", number(LOOKAHEAD, "extra"), 0.02, "+.1%", at_most=True),
    Goal("copy, time over the plain loss", number(COPY, "extra"), 0.02, "+.1%", at_most=True),
    # a twentieth for the allocator, whose resident pages are counted on a CPU
    Goal("look-ahead, peak below the plain loss, in models", saved_models(PLAIN), 0.95, ".2f"),
)

STEP_GOALS_ON_A_GPU = (
    *STEP_GOALS,
    Goal("look-ahead, times TRL's tokens/s", ratio("tokens_per_s", LOOKAHEAD, SYNCED_TRL), 1.15, ".2f"),
    Goal("look-ahead, MiB of peak below TRL", saved_mib(SYNCED_TRL), 3 * 1024, ".0f"),
)


def judged(summaries: Sequence[Summary], on_gpu: bool) -> list[Line]:
    by_name = {summary.variant: summary for summary in summaries}
    return [{"goal": goal.name, **goal.cells(by_name)} for goal in (STEP_GOALS_ON_A_GPU if on_gpu else STEP_GOALS)]


def text(runs: Sequence[Run], on_gpu: bool) -> str:
    """The variants and the goals."""
    if _are_on_lengths(runs):
        return layouts_table.text(runs)
    found = summaries(runs, PLAIN)
    is_toy = bool(runs) and runs[0].setting == TOY.name
    goals = "No goal is judged at toy size." if is_toy else columns(judged(found, on_gpu))
    how = "Time over plain's: of the same step, the least of the turns. Peak: see PeakMemory in benchmarks/measure.py."
    return f"{columns([summary.cells() for summary in found])}\n\n{how}\n\n{goals}"


def markdown(path: Path, name: str, words: Sequence[str] = ()) -> str:
    """The variants, the goals, and where the figures come from."""
    facts, runs = read(path, Run)
    if _are_on_lengths(runs):
        return layouts_table.markdown(facts, runs, name, words)
    found = summaries(runs, PLAIN)
    first, turns = runs[0], len({run.turn for run in runs})
    source = (
        f"`{name}`: {facts['machine']}; torch {facts['torch']}; transformers {facts['transformers']}; {first.examples} "
        f"pairs of at most 2 x {first.T} tokens, V={first.V}, {first.dtype}, weights of {first.weights_mib:.0f} MiB; "
        f"{turns} processes each; timed steps: {facts['timed steps']}."
    )
    on_gpu = not first.cpu_seconds
    return "\n\n".join([piped([summary.cells() for summary in found]), piped(judged(found, on_gpu)), source])


def _are_on_lengths(runs: Sequence[Run]) -> bool:
    """Whether the variants lay out sequences of realistic lengths: such a setting's name has more than the model's."""
    return bool(runs) and " " in runs[0].setting
