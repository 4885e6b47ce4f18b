"""Picture of several runs: reward, margin, unclamped share, KL and surplus surprisal, by steps and seconds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from textwrap import fill

from humanline_fused.looking.curves import WORK, Columns, has, read_metrics, series, values, with_clock
from humanline_fused.looking.pictures import Panel, check_ending, draw
from humanline_fused.looking.quantities import QUANTITIES, STEEP, Metric
from humanline_fused.places import refuse_output_file
from humanline_fused.printing import escaped

CLOCK = "seconds of work"

FINEST = 4000
"""Largest number of points of a curve in the picture, whose panels are less than half as many pixels wide."""

FLATTEST = 0.05
"""Smallest span of the axis of a share, so that noise does not look like a change."""

SAME_PACE = 1.05
"""Largest ratio of the runs' seconds per step at which curves over seconds look like those over steps."""

NAMED = 4
"""Largest number of runs that a panel names as missing."""

LETTERS = 64
"""Letters of a line of a panel's title."""


def labels_of(folders: Sequence[Path]) -> list[str]:
    """Return the names of the folders, with as many parent folders as needed to make them distinct.

    >>> labels_of([Path("/a/plain"), Path("/a/humanline")]), labels_of([Path("/a/x/run"), Path("/a/y/run")])
    (['plain', 'humanline'], ['x/run', 'y/run'])
    """
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = [escaped("/".join(p[-depth:])) for p in parts]
        if len(set(labels)) == len(labels):
            return labels
    twice = next(folder for folder, p in zip(folders, parts, strict=True) if parts.count(p) > 1)
    raise ValueError(f"{twice}: expected different runs, got it twice")


@dataclass(frozen=True, eq=False)
class Row:
    """A metric of some runs, which may stand on one axis."""

    metric: Metric
    title: str
    runs: Mapping[str, Columns]
    note: str = ""

    @property
    def constant(self) -> float | None:
        """The one value of all runs, of which some have several points; None if there is no such value."""
        runs = [ys for lines in self.runs.values() if len(ys := values(lines, "step", self.metric.key)[1])]
        lowest, highest = min(ys.min() for ys in runs), max(ys.max() for ys in runs)
        return float(lowest) if lowest == highest and max(map(len, runs)) > 1 else None

    def panel(self, x: str, label: str) -> Panel:
        """Return the panel over ``x``."""
        curves = {run: series(lines, x, self.metric.key, FINEST) for run, lines in self.runs.items()}
        limits = None
        if self.metric.share:
            span = max([FLATTEST, *(1 - y for _, ys in curves.values() for y in ys)])
            limits = 1 - 1.1 * span, 1 + 0.05 * span
        steep = self.metric.steep and max(chain(*(ys for _, ys in curves.values())), default=0.0) > STEEP
        unit = f"{self.metric.unit} (log above 1)" if steep else self.metric.unit
        untimed = listed("not over seconds", [run for run, (xs, _) in curves.items() if not xs])
        note = "\n".join(filter(None, (self.note, untimed)))
        return Panel(self.title, label, unit, curves, limits, note, steep)


def plot_runs(folders: Sequence[Path], image: Path | None = None) -> list[str]:
    """Draw several runs in one picture.

    Args:
        folders: the runs' folders, each with its ``metrics.jsonl``; ``settings.json`` says whether a reference moves.
        image: output file; its extension sets the format. Default ``plot.png``, in the folder of a single run, else in
            the current one.

    Returns:
        Lines for the user: the quantities that no run or not every run logged, the panels that are left out because
        they show no difference, then the path of the picture.

    Raises:
        ValueError: a folder has no log lines, none of the quantities was logged, or the extension is unknown.
        OSError: the picture cannot be written.

    >>> plot_runs([Path("runs/demo/plain"), Path("runs/demo/humanline")])  # doctest: +SKIP
    ['left out, no run logged it: KL to the initial model (eval_kl_initial)', ..., 'plot.png']
    """
    if image:
        refuse_output_file(image)
    image = image or (folders[0] / "plot.png" if len(folders) == 1 else Path("plot.png"))
    check_ending(image)
    said: list[str] = []
    names = {"seconds", *WORK, *(metric.key for quantity in QUANTITIES for metric in quantity.metrics)}
    labels = labels_of(folders)
    runs: Mapping[str, Columns] = {
        label: read_metrics(folder, names, said.append) for label, folder in zip(labels, folders, strict=True)
    }
    references = {label: reference_of(folder) for label, folder in zip(labels, folders, strict=True)}
    rows = []
    for quantity in QUANTITIES:
        metrics = quantity.logged(runs)
        if not metrics:
            keys = ", ".join(metric.key for metric in quantity.metrics)
            said.append(f"left out, no run logged it: {quantity.name} ({keys})")
        for metric in metrics:
            if lacking := [label for label, lines in runs.items() if not has(lines, metric.key)]:
                said.append(f"{metric.key} is not in {', '.join(lacking)}")
            rows += rows_of(metric, runs, references)
    if not rows:
        raise ValueError(f"{', '.join(map(str, folders))}: nothing to draw; {'; '.join(said)}")
    # A constant shows no difference, unless there is nothing else to show.
    varied = [row for row in rows if row.constant is None] or rows
    said += [f"left out, {row.constant:g} throughout: {row.metric.key}" for row in rows if row not in varied]
    # One clock for all runs: seconds with and without evaluation are not comparable.
    worked = all(any(has(lines, part) for part in WORK) for lines in runs.values())
    clock = (CLOCK, "seconds, without evaluation and saving") if worked else ("seconds", "seconds, evaluation included")
    if worked:
        runs = {label: with_clock(lines, CLOCK) for label, lines in runs.items()}
    axes = [("step", "optimizer steps")]
    if pace_differs(runs, clock[0]):
        axes.append(clock)
    elif len(runs) > 1:
        said.append("left out, the same as over steps: seconds")
    timed = [Row(row.metric, row.title, {label: runs[label] for label in row.runs}, row.note) for row in varied]
    draw([[row.panel(*x) for x in axes] for row in timed], labels, image)
    return [*said, str(image)]


def rows_of(metric: Metric, runs: Mapping[str, Columns], references: Mapping[str, str]) -> Iterator[Row]:
    """Return the rows of a metric, one for each kind of reference if the kinds are not comparable."""
    logged = {label: lines for label, lines in runs.items() if has(lines, metric.key)}
    lacking = listed("no value from", [label for label in runs if label not in logged])
    kinds = dict.fromkeys(references[label] for label in logged) if metric.by_reference else [""]
    for kind in kinds:
        here = {label: ls for label, ls in logged.items() if not metric.by_reference or references[label] == kind}
        elsewhere = listed("other reference, own row", [run for run in logged if run not in here])
        yield Row(metric, metric.titled(kind), here, "\n".join(filter(None, (lacking, elsewhere))))


def listed(what: str, runs: Sequence[str]) -> str:
    """Return lines on runs; empty if there are none.

    >>> listed("no value from", ["plain", "kto"])
    'no value from: plain, kto'
    """
    more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    return fill(f"{what}: {', '.join(runs[:NAMED])}{more}", LETTERS) if runs else ""


def reference_of(folder: Path) -> str:
    """Return whether the reference of a run is ``moving`` or ``frozen``; empty if its settings do not say."""
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    reference = settings.get("reference") if isinstance(settings, dict) else None
    return ("frozen" if reference == "frozen" else "moving") if isinstance(reference, str) else ""


def pace_differs(runs: Mapping[str, Columns], clock: str) -> bool:
    """Return whether curves over seconds may look different from those over steps."""
    paces = []
    for lines in runs.values():
        steps, seconds = values(lines, "step", clock)
        if len(steps) and steps[-1] > 0 and seconds[-1] > 0:
            paces.append(seconds[-1] / steps[-1])
    return len(paces) > 1 and max(paces) > SAME_PACE * min(paces)
