"""Width of the clamp times number of syncs: is there one budget of trust that decides?"""

import math
from pathlib import Path

from benchmarks.paper.arms import bounds, varied
from benchmarks.paper.drawing import panels, save
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.intervals import cpu_seconds
from benchmarks.paper.protocol import Comparison, Protocol
from benchmarks.paper.run_rows import Run
from humanline_fused.tiny import Loss, Setting, Trainings

OBJECTIVES: tuple[Loss, ...] = ("dpo", "grpo")
WIDTHS = (0.1, 0.2, 0.4, 0.75, 1.5, 3.0, math.inf)
CADENCES = (None, 100, 50, 25, 12)
LEARNING_RATES = (1e-3, 3e-3)
PROTOCOL = Protocol(final=tuple(range(700, 706)))


def settings(loss: Loss) -> list[Setting]:
    """Return the grid. The clamp is the only trust region: GRPO has no clip here."""
    epsilon = math.inf if loss == "grpo" else 0.2
    grid = [Setting("humanline", sync_every=k, epsilon=epsilon, **bounds(width)) for k in CADENCES for width in WIDTHS]
    return [one for setting in grid for one in varied(setting, learning_rate=LEARNING_RATES)]


def run(protocol: Protocol) -> list[Run]:
    found = []
    for loss in OBJECTIVES:
        mine = settings(loss)
        comparison = Comparison("budget", "", Trainings(loss), protocol)
        found += comparison.sweep({"humanline": mine[::9] if protocol.small else mine})
    return found


def grid(rows: list[Run], objective: str) -> dict[tuple[int | None, float], float]:
    """Return the mean reward of each cadence and width, at the better of the learning rates."""
    found: dict[tuple[int | None, float], dict[float, list[float]]] = {}
    for row in rows:
        if row.objective == objective:
            by_rate = found.setdefault((row.sync_every, row.width), {})
            by_rate.setdefault(row.learning_rate, []).append(row.reward)
    return {key: max(sum(v) / len(v) for v in by_rate.values()) for key, by_rate in found.items()}


def trust(k: int | None, width: float, steps: int) -> float:
    """Return the nats that a token's log-prob may move in a run: the width times one more than the syncs that count."""
    return width * (1 if k is None else 1 + (steps - 1) // k)


def figure(rows: list[Run], image: Path) -> None:
    from matplotlib import colormaps

    figure, axes = panels(2 * len(OBJECTIVES), width=3.8)
    steps = rows[0].steps[-1]
    for place, objective in enumerate(OBJECTIVES):
        found = grid(rows, objective)
        one, other = axes[2 * place : 2 * place + 2]
        values = [[found.get((k, w), math.nan) for w in WIDTHS] for k in CADENCES]
        shown = one.imshow(values, vmin=0.3, vmax=0.95, cmap="viridis", aspect="auto")
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if not math.isnan(value):
                    shade = "black" if value > 0.75 else "white"
                    one.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=shade)
        one.set_xticks(range(len(WIDTHS)), [f"{w:g}" for w in WIDTHS])
        one.set_yticks(range(len(CADENCES)), ["never" if k is None else str(k) for k in CADENCES])
        one.set_xlabel("width of the clamp, nats")
        one.set_ylabel("k")
        one.grid(visible=False)
        one.set_title(f"{objective.upper()}: held-out reward", loc="left")
        for number, k in enumerate(CADENCES):
            shade = colormaps["Greens"](0.95 - 0.15 * number)
            points = [(trust(k, w, steps), found[k, w]) for w in WIDTHS if (k, w) in found and w < math.inf]
            other.plot(
                *zip(*points, strict=True), "o-", ms=4, lw=1.4, color=shade, label="never" if k is None else f"k = {k}"
            )
        other.set_xscale("log")
        other.set_ylim(0.3, 1)
        other.set_xlabel("width × (1 + syncs), nats")
        other.set_title(f"{objective.upper()}: against the budget", loc="left")
        del shown
    axes[1].legend(frameon=False, fontsize=8)
    save(figure, image)


def explained(rows: list[Run], objective: str, by: str) -> float:
    """Return how much of the grid's variance is explained by levels of the budget, of the width or of k, at most 1.

    Levels of the budget are powers of two. As there are more of them than of the others, and any levels explain some of
    the variance, the share is adjusted for their number (adjusted R²); it is below 0 where they explain nothing.
    """
    steps = rows[0].steps[-1]
    found = {key: value for key, value in grid(rows, objective).items() if key[1] < math.inf}
    level = {
        "budget": lambda k, w: round(math.log2(trust(k, w, steps))),
        "width": lambda k, w: w,
        "k": lambda k, w: k,
    }[by]
    groups: dict[object, list[float]] = {}
    for (k, w), value in found.items():
        groups.setdefault(level(k, w), []).append(value)
    mean = sum(found.values()) / len(found)
    total = sum((value - mean) ** 2 for value in found.values())
    within = sum((value - sum(g) / len(g)) ** 2 for g in groups.values() for value in g)
    free = len(found) - len(groups)
    return 1 - (within / free) / (total / (len(found) - 1)) if total and free else 0.0


def decides(rows: list[Run], objective: str) -> bool:
    """Return whether the budget explains more than the width alone and k alone."""
    return explained(rows, objective, "budget") > max(explained(rows, objective, by) for by in ("width", "k"))


def paragraph(rows: list[Run]) -> str:
    deciding = [o.upper() for o in OBJECTIVES if decides(rows, o)]
    others = [o.upper() for o in OBJECTIVES if not decides(rows, o)]
    words = [("does not hold for", others, "width or k alone explains as much or more"), ("holds for", deciding, "")]
    lines = [
        f"The prediction {word} {', '.join(names)}{f': {why}' if why else ''}." for word, names, why in words if names
    ]
    lines.append("")
    for objective in OBJECTIVES:
        found = grid(rows, objective)
        k, width = max(found, key=found.__getitem__)
        shares = ", ".join(f"{by} {explained(rows, objective, by):.0%}" for by in ("budget", "width", "k"))
        cadence = "never synced" if k is None else f"k = {k}"
        lines.append(
            f"- {objective.upper()}: best of the grid ±{width:g}, {cadence}: {found[k, width]:.3f}; share of the "
            f"grid's variance between levels, adjusted for their number: {shares}."
        )
    lines.append("")
    lines.append(
        "The budget is the width times one more than the number of syncs: the nats that a token's log-prob may move. "
        f"Each cell has the better of {len(LEARNING_RATES)} learning rates, and the best cell is chosen on the seeds "
        "that it is shown for, so it is a little too high. "
        f"{len(rows)} runs, {len({row.seed for row in rows})} seeds, {cpu_seconds(rows):.0f} CPU seconds."
    )
    return "\n".join(lines)


EXPERIMENT = Experiment(
    name="budget",
    title="Width times syncs",
    kind=Run,
    run=run,
    figure=figure,
    paragraph=paragraph,
    protocol=PROTOCOL,
    arms=[settings(loss) for loss in OBJECTIVES],
)
