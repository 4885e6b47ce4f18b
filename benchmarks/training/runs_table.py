"""The tables of a file of runs: for a terminal and for the documents."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import read
from benchmarks.tables import columns, piped
from benchmarks.training.runs import Run, summaries
from benchmarks.training.setting import TOY
from benchmarks.training.step_goals import judged
from benchmarks.training.variants import PLAIN


def text(runs: Sequence[Run], on_gpu: bool) -> str:
    """The variants and the goals."""
    found = summaries(runs, PLAIN)
    is_toy = bool(runs) and runs[0].setting == TOY.name
    goals = "No goal is judged at toy size." if is_toy else columns(judged(found, on_gpu))
    how = "Time over plain's: of the same step, the least of the turns. Peak: see PeakMemory in benchmarks/measure.py."
    return f"{columns([summary.cells() for summary in found])}\n\n{how}\n\n{goals}"


def markdown(path: Path, name: str, words: Sequence[str] = ()) -> str:
    """The variants, the goals, and where the figures come from."""
    facts, runs = read(path, Run)
    found = summaries(runs, PLAIN)
    first, turns = runs[0], len({run.turn for run in runs})
    source = (
        f"`{name}`: {facts['machine']}; torch {facts['torch']}; transformers {facts['transformers']}; {first.pairs} "
        f"pairs of at most 2 x {first.T} tokens, V={first.V}, {first.dtype}, weights of {first.weights_mib:.0f} MiB; "
        f"{turns} processes each; timed steps: {facts['timed steps']}."
    )
    on_gpu = not first.cpu_seconds
    return "\n\n".join([piped([summary.cells() for summary in found]), piped(judged(found, on_gpu)), source])
