"""The table of a file of runs, for the documents."""

from pathlib import Path

from benchmarks.results import ROOT
from benchmarks.training import runs
from benchmarks.training import step_goals as goals
from benchmarks.training.variants import PLAIN


def markdown(file: Path) -> str:
    """The variants, the goals, and where the figures come from."""
    facts, measured = runs.read(file)
    summaries = runs.summaries(measured, PLAIN)
    on_gpu = not measured[0].cpu_seconds
    judged = goals.table(summaries, goals.GPU if on_gpu else goals.ANYWHERE)
    first, turns = measured[0], len({run.turn for run in measured})
    name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
    source = (
        f"`{name}`: {facts['machine']}; torch {facts['torch']}; transformers {facts['transformers']}; {first.pairs} "
        f"pairs of at most 2 x {first.T} tokens, V={first.V}, {first.dtype}, weights of {first.weights_mib:.0f} MiB; "
        f"{turns} processes each; timed steps: {facts['timed steps']}."
    )
    return "\n\n".join([_table([runs.HEADER, *(summary.cells() for summary in summaries)]), _table(judged), source])


def _table(lines: list[tuple[str, ...]]) -> str:
    header, *rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ("---",) * len(header), *rows])
