"""``python -m benchmarks report``: the marked tables of the documents, made anew.

``<!-- benchmarks: benchmarks/results/cpu.csv dpo full -->`` is followed by the rows of that file whose case and mode
are among the words, by all rows where there is no word. The name may be a pattern of names; where no file has such a
name yet, the document says so. ``<!-- benchmarks: floors logits -->`` (or ``head``) is followed by the cases' floors,
``<!-- benchmarks: paper equal -->`` by the text of an experiment (``claims``: by the table of the paper's claims;
``answer``: by the README's sentences).
"""

import importlib
import re
from pathlib import Path

from benchmarks.results import ROOT, first_column

DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs/performance.md",
    ROOT / "docs/data.md",
    ROOT / "docs/paper.md",
    ROOT / "docs/choosing.md",
    ROOT / "docs/reliability.md",
)
BEGIN, END = "<!-- benchmarks: {} -->", "<!-- end of benchmarks -->"

TABLES = {
    "case": "benchmarks.kernels.figures",
    "variant": "benchmarks.training.runs_table",
    "way": "benchmarks.preparation",
    "kernel": "benchmarks.static.loop_table",
    "launch": "benchmarks.static.launch_table",
    "loss": "benchmarks.static.loss_launches",
    "host": "benchmarks.host",
    "held_mib": "benchmarks.kernels.cached_rows",
    "outcome": "benchmarks.kernel_tests",
    "fault": "tests.faults.table",
}
"""By the first column of a file: the module whose ``markdown`` makes a table of it."""


def main(arguments: list[str]) -> None:
    for document in DOCUMENTS:
        document.write_text(fill_in(document.read_text()))


def fill_in(document: str) -> str:
    """The document with every marked table made anew."""
    begin = re.escape(BEGIN).replace(r"\{\}", "([^>]+)")
    return re.sub(f"{begin}.*?{re.escape(END)}", _marked, document, flags=re.DOTALL)


def _marked(match: re.Match[str]) -> str:
    pattern, *words = match[1].split()
    if pattern == "floors":
        from benchmarks.kernels.figures import floors

        tables = [floors(*words)]
    elif pattern == "paper":
        from benchmarks.paper.document import marked

        tables = [marked(*words)]
    else:
        tables = [table(file, words) for file in sorted(ROOT.glob(pattern))]
    filled = "\n\n".join(tables) or f"*Not measured yet: no file is called `{pattern}`.*"
    return "\n".join([BEGIN.format(match[1]), filled, END])


def table(file: Path, words: list[str]) -> str:
    name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
    return importlib.import_module(TABLES[first_column(file)]).markdown(file, str(name), words)
