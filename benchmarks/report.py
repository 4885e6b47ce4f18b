"""``python -m benchmarks report``: the marked tables of the documents, from the files that their markers name.

``<!-- benchmarks: benchmarks/results/cpu.csv dpo full -->`` is followed by the rows of that file whose case and mode
are among the words, by all rows where there is no word; files of training steps have a table of their own. The name
may be a pattern of names; where no file has such a name yet, the document says so.
"""

import re
from pathlib import Path

from benchmarks.results import ROOT, Row, filled, read_csv

DOCUMENTS = (ROOT / "README.md", ROOT / "docs/performance.md")
BEGIN, END = "<!-- benchmarks: {} -->", "<!-- end of benchmarks -->"


def main() -> None:
    for document in DOCUMENTS:
        document.write_text(fill_in(document.read_text()))


def fill_in(document: str) -> str:
    """The document with every marked table made anew."""

    def table(match: re.Match[str]) -> str:
        pattern, *words = match[1].split()
        files = sorted(ROOT.glob(pattern))
        tables = [_table(file, words) for file in files] or [f"*Not measured yet: no file is called `{pattern}`.*"]
        return "\n".join([BEGIN.format(match[1]), "\n\n".join(tables), END])

    begin = re.escape(BEGIN).replace(r"\{\}", "([^>]+)")
    return re.sub(f"{begin}.*?{re.escape(END)}", table, document, flags=re.DOTALL)


def _table(file: Path, words: list[str]) -> str:
    if file.suffix == ".json":
        from benchmarks.static.loop_table import markdown  # pyright: ignore[reportMissingImports]

        return markdown(file)
    if "training" in file.stem:
        from benchmarks.training.runs_table import markdown as of_training

        return of_training(file)
    return figures(file, words)


def figures(file: Path, words: list[str]) -> str:
    """The rows as a table, without the columns that are the same or empty in all of them, and where they come from."""
    facts, rows = read_csv(file)
    rows = [row for row in rows if not words or {row.case, row.mode} <= set(words)]
    header, *lines = filled(rows)
    kept = [i for i, name in enumerate(header) if name != "mode" or len({row.mode for row in rows}) > 1]
    table = [[line[i] for i in kept] for line in [header, ("---",) * len(header), *lines]]
    name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
    shapes = "; ".join(sorted({_shape(row) for row in rows}))
    source = f"`{name}`: {facts['machine']}; torch {facts['torch']}; triton {facts['triton']}; {shapes}."
    return "\n".join([*(f"| {' | '.join(row)} |" for row in table), "", source])


def _shape(row: Row) -> str:
    hidden = f" H={row.H}" if row.H else ""
    return f"B={row.B} T={row.T}{hidden} V={row.V}, {row.rows} rows count, {row.dtype}"
