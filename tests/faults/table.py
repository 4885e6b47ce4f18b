"""The counts as a table of a document, for ``python -m benchmarks report``."""

from pathlib import Path

from benchmarks.results import read
from tests.faults.outcome import Count, Outcome


def markdown(file: Path, name: str, words: list[str]) -> str:
    """Return the counts of a file, one row for each class."""
    facts, counts = read(file, Count)
    head = ["what", "tried", *Outcome]
    rows = [[count.what, count.tried, *(getattr(count, one.value) for one in Outcome)] for count in counts]
    totals = [sum(row[column] for row in rows if isinstance(row[column], int)) for column in range(1, len(head))]
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows, ["**all**", *totals]]
    table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    made = f"{facts['machine']}, torch {facts['torch']}, commit {facts['commit']}; `{facts['command']}`"
    return f"{table}\n\n`{name}`: {made}"
