"""Picture of several runs: reward, margin, unclamped share, KL and surplus surprisal, by steps and seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from humanline_fused.looking.curves import WORK, Columns, has, read_metrics, series, with_clock
from humanline_fused.looking.pictures import Panel, check_ending, draw
from humanline_fused.printing import escaped

CLOCK = "seconds of work"

FINEST = 4000
"""Largest number of points of a curve in the picture, whose panels are less than half as many pixels wide."""

FLATTEST = 0.05
"""Smallest span of the axis of a share, so that noise does not look like a change."""


@dataclass(frozen=True)
class Metric:
    """A logged number: its key in ``metrics.jsonl``, a title that says which direction is good, and its unit.

    A ``share`` is at most 1 and usually near 1, so its axis ends at 1.
    """

    key: str
    title: str
    unit: str
    share: bool = False


@dataclass(frozen=True)
class Quantity:
    """A quantity of the picture, with the metrics that may represent it.

    Attributes:
        name: name for messages.
        metrics: metrics in order of preference.
        all: draw every logged metric, instead of the one that most runs have.
    """

    name: str
    metrics: tuple[Metric, ...]
    all: bool = False

    def logged(self, runs: Mapping[str, Columns]) -> list[Metric]:
        """Return the metrics to draw; none if no run logged one."""
        counts = {metric: sum(has(lines, metric.key) for lines in runs.values()) for metric in self.metrics}
        found = [metric for metric in self.metrics if counts[metric]]
        return found if self.all else sorted(found, key=lambda metric: -counts[metric])[:1]


QUANTITIES = (
    Quantity(
        "reward",
        (
            Metric("heldout/reward", "Reward on held-out prompts. Up: better completions", "mean reward"),
            Metric("eval_reward", "Reward in evaluation. Up: better completions", "mean reward"),
            Metric("reward", "Reward of the training samples. Up: better completions", "mean reward"),
        ),
        all=True,
    ),
    Quantity(
        "margin",
        (
            Metric(
                "eval_rewards_initial/margins",
                "Margin of held-out pairs, against the initial policy.\nUp: better separation of chosen and rejected",
                "reward margin (nats × β)",
            ),
            Metric(
                "rewards/margins",
                "Margin in training, against the reference of each step.\nAbove 0: moves towards the chosen; "
                "small if the reference moves",
                "reward margin (nats × β)",
            ),
        ),
    ),
    Quantity(
        "unclamped share",
        (
            Metric(
                "humanline/unclamped",
                "Tokens within the clamp's bounds (without a clamp: all).\n"
                "Down: the policy moves further from its reference",
                "share of tokens",
                share=True,
            ),
        ),
    ),
    Quantity(
        "KL to the initial model",
        (
            Metric(
                "eval_kl_initial",
                "KL to the initial policy on held-out data.\nUp: further away; 0 at the start",
                "KL estimate k3 (nats per token)",
            ),
        ),
    ),
    Quantity(
        "surplus surprisal",
        (
            Metric(
                "humanline/surplus",
                "Surplus surprisal of the data under the reference.\nUp: the reference leaves the data",
                "nats per token",
            ),
        ),
    ),
)


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


def plot_runs(folders: Sequence[Path], image: Path | None = None) -> list[str]:
    """Draw several runs in one picture.

    Args:
        folders: the runs' folders, each with its ``metrics.jsonl``.
        image: output file; its extension sets the format. Default ``plot.png``, in the folder of a single run, else in
            the current one.

    Returns:
        Lines for the user: the quantities that no run or not every run logged, then the path of the picture.

    Raises:
        ValueError: a folder has no log lines, none of the quantities was logged, or the extension is unknown.
        OSError: the picture cannot be written.

    >>> plot_runs([Path("runs/demo/plain"), Path("runs/demo/humanline")])  # doctest: +SKIP
    ['left out, no run logged it: KL to the initial model (eval_kl_initial)', ..., 'plot.png']
    """
    image = image or (folders[0] / "plot.png" if len(folders) == 1 else Path("plot.png"))
    check_ending(image)
    said: list[str] = []
    names = {"seconds", *WORK, *(metric.key for quantity in QUANTITIES for metric in quantity.metrics)}
    labelled = zip(labels_of(folders), folders, strict=True)
    runs: Mapping[str, Columns] = {label: read_metrics(folder, names, said.append) for label, folder in labelled}
    # One clock for all runs: seconds with and without evaluation are not comparable.
    worked = all(any(has(lines, part) for part in WORK) for lines in runs.values())
    clock = (CLOCK, "seconds, without evaluation and saving") if worked else ("seconds", "seconds, evaluation included")
    if worked:
        runs = {label: with_clock(lines, CLOCK) for label, lines in runs.items()}
    rows = []
    for quantity in QUANTITIES:
        metrics = quantity.logged(runs)
        if not metrics:
            keys = ", ".join(metric.key for metric in quantity.metrics)
            said.append(f"left out, no run logged it: {quantity.name} ({keys})")
        for metric in metrics:
            drawn = {label: lines for label, lines in runs.items() if has(lines, metric.key)}
            if lacking := [label for label in runs if label not in drawn]:
                said.append(f"{metric.key} is not in {', '.join(lacking)}")
            rows.append([_panel(metric, drawn, *x) for x in (("step", "optimizer steps"), clock)])
    if not rows:
        raise ValueError(f"{', '.join(map(str, folders))}: nothing to draw; {'; '.join(said)}")
    draw(rows, list(runs), image)
    return [*said, str(image)]


def _panel(metric: Metric, runs: Mapping[str, Columns], x: str, label: str) -> Panel:
    curves = {run: series(lines, x, metric.key, FINEST) for run, lines in runs.items()}
    limits = None
    if metric.share:
        span = max([FLATTEST, *(1 - y for _, ys in curves.values() for y in ys)])
        limits = 1 - 1.1 * span, 1 + 0.05 * span
    return Panel(metric.title, label, metric.unit, curves, limits)
