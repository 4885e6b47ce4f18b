"""Text and tables of docs/paper.md, docs/choosing.md and the README, made from the results."""

from pathlib import Path

from benchmarks.paper.catalogue import EXPERIMENTS
from benchmarks.paper.choosing import ADVICE
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.short_answer import SENTENCES
from benchmarks.results import RESULTS, ROOT, Facts, read
from benchmarks.tables import piped

FOLDER, IMAGES = RESULTS / "paper", ROOT / "docs/images/paper"


def marked(name: str) -> str:
    """Return what stands at a mark: ``claims``, ``choosing``, the README's ``answer``, or the text of an experiment."""
    parts = {"claims": claims, "choosing": choosing, "answer": answer}
    return parts[name]() if name in parts else section(EXPERIMENTS[name])


def claims() -> str:
    """Return a table of the paper's claims, with our figures and verdicts."""
    lines = []
    for experiment in EXPERIMENTS.values():
        if not experiment.claims or not _file(experiment).is_file():
            continue
        rows = _results(experiment)[1]
        for claim in experiment.claims:
            lines.append(
                {
                    "the paper's claim": claim.text,
                    "its figure": claim.paper,
                    "ours": claim.ours(rows),
                    "verdict": f"**{claim.verdict(rows)}**",
                    "why, as far as we know": claim.why,
                    "command": f"[`{experiment.name}`](#{anchor(experiment)})",
                }
            )
    return piped(lines) if lines else "*No experiment has been run yet.*"


def choosing() -> str:
    """Return the table of docs/choosing.md."""
    lines = []
    for advice in ADVICE:
        experiment = EXPERIMENTS[advice.experiment]
        if _file(experiment).is_file():
            lines.append(advice.line(_results(experiment)[1], f"[{experiment.name}](paper.md#{anchor(experiment)})"))
    return piped(lines) if lines else "*No experiment has been run yet.*"


def answer() -> str:
    """Return the README's sentences on when humanline helps."""
    links = {name: f"[{name}](docs/paper.md#{anchor(one)})" for name, one in EXPERIMENTS.items()}
    lines = []
    for sentence in SENTENCES:
        results = {name: _results(EXPERIMENTS[name])[1] for name in sentence.experiments}
        lines.append(f"- {sentence.text(results).format_map(links)}")
    return "\n".join(lines)


def section(experiment: Experiment) -> str:
    """Return the text of an experiment with its figure, and where its numbers come from."""
    if not _file(experiment).is_file():
        return f"*Not run yet: `python -m benchmarks paper {experiment.name}`.*"
    facts, rows = _results(experiment)
    source = (
        f"`python -m benchmarks paper {experiment.name}` wrote `{_file(experiment).relative_to(ROOT)}`: "
        f"{facts['machine']}; torch {facts['torch']}; {facts['cpu_seconds']} CPU seconds; "
        f"protocol `{facts['protocol']}`."
    )
    picture = f"![{experiment.title}](images/paper/{experiment.name}.png)"
    return "\n\n".join([experiment.paragraph(rows), picture, source])


def anchor(experiment: Experiment) -> str:
    """Return the heading's anchor, as GitHub makes it."""
    kept = "".join(letter for letter in experiment.title.lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")


def _file(experiment: Experiment) -> Path:
    return FOLDER / f"{experiment.name}.csv"


def _results(experiment: Experiment) -> tuple[Facts, list]:
    return read(_file(experiment), experiment.kind)
