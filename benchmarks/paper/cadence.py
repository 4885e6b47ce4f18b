"""How often to sync: reward against k, with and without the clamp's help."""

from pathlib import Path

from benchmarks.paper.arms import PAPER_WIDTH, bounds, plain, varied
from benchmarks.paper.drawing import OTHER, line, panels, save
from benchmarks.paper.experiment import Claim, Experiment
from benchmarks.paper.intervals import best_of_tuning, bootstrap, cpu_seconds, edges, final, gain
from benchmarks.paper.protocol import Arms, Comparison, Protocol
from benchmarks.paper.run_rows import Run
from humanline_fused.tiny import Interval, Loss, Setting, Trainings

OBJECTIVES: tuple[Loss, ...] = ("dpo", "kto", "grpo")
CADENCES = (1, 2, 4, 8, 16, 32, 64, 128)
WIDTHS = (0.2, 1.5)
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
PAPER_K = 16
"""The cadence here that lies in the paper's range of good ones."""
PROTOCOL = Protocol(survivors=2, final=tuple(range(800, 812)))


def name(k: int, width: float) -> str:
    """Return the name of an arm."""
    return f"k = {k}, ±{width:g}"


def arms(loss: Loss) -> Arms:
    """Return an arm for each cadence and width, and the plain one."""
    made = {name(k, w): Setting("humanline", sync_every=k, **bounds(w)) for w in WIDTHS for k in CADENCES}
    made["plain"] = plain(loss)
    return {arm: varied(setting, learning_rate=LEARNING_RATES) for arm, setting in made.items()}


def run(protocol: Protocol) -> list[Run]:
    found = []
    for loss in OBJECTIVES:
        mine = arms(loss)
        if protocol.small:
            few = ["plain", *(name(k, w) for w in WIDTHS for k in (1, 16, CADENCES[-1]))]
            mine = {arm: mine[arm][1:3] for arm in few}
        found += Comparison("sync", "", Trainings(loss), protocol).compare(mine)
    return found


def _cadences(rows: list[Run]) -> list[int]:
    return sorted({row.sync_every for row in rows if row.sync_every})


def figure(rows: list[Run], image: Path) -> None:
    figure, axes = panels(len(OBJECTIVES))
    for one, objective in zip(axes, OBJECTIVES, strict=True):
        for width, shade in zip(WIDTHS, OTHER, strict=False):
            found = [[r.reward for r in final(rows, objective=objective, arm=name(k, width))] for k in _cadences(rows)]
            line(one, _cadences(rows), found, f"±{width:g} nats", shade)
        usual = bootstrap([row.reward for row in final(rows, objective=objective, arm="plain")])
        one.axhspan(usual.low, usual.high, color="#6b7280", alpha=0.25, lw=0)
        one.axhline(usual.mean, color="#6b7280", lw=1.5, label="plain, untuned (β = .1, ε = .2)", ls="--")
        one.set_xscale("log", base=2)
        one.set_ylim(0.3, 1)
        one.set_title(objective.upper(), loc="left")
        one.set_xlabel("k, optimizer steps between syncs")
    axes[0].set_ylabel("held-out reward, 95 % interval")
    axes[0].legend(frameon=False, fontsize=9)
    save(figure, image)


def best_cadence(rows: list[Run], objective: str, width: float) -> int:
    """Return the best k of a width in the tuning."""
    names = {name(k, width): k for k in _cadences(rows)}
    return names[best_of_tuning(rows, list(names), objective=objective)]


def paragraph(rows: list[Run]) -> str:
    lines = []
    for objective in OBJECTIVES:
        for width in WIDTHS:
            k = best_cadence(rows, objective, width)
            ours = gain(rows, name(k, width), "plain", objective=objective).signed
            one = gain(rows, name(1, width), "plain", objective=objective).signed
            text = f"k = 1 against plain {one}; the best k of the tuning, {k}, against plain {ours}"
            lines.append(f"- {objective.upper()}, ±{width:g}: {text}.")
    best = [best_cadence(rows, objective, width) for objective in OBJECTIVES for width in WIDTHS]
    at_end = sum(k == max(_cadences(rows)) for k in best)
    ends = edges([row for row in rows if row.arm == "plain"])
    lines += [
        "",
        f"In {at_end} of {len(best)} cases the best k is the largest that was tried. Plain has β = .1 and ε = .2 here; "
        f"the learning rate of every arm is tuned, over {len(LEARNING_RATES)} values; the best k has {len(CADENCES)} "
        "times as many. With β and ε tuned, plain does better ([above](#equal-tuning)). "
        + (f"Chosen at an end of what was tried: {'; '.join(ends)}. " if ends else "")
        + f"{len(rows)} runs, {cpu_seconds(rows):.0f} CPU seconds.",
    ]
    return "\n".join(lines)


def _against(rows: list[Run], objective: str) -> tuple[Interval, Interval, int]:
    """Return the gain of k = 1 over plain, that of k = 16 over the best k of the tuning, and that k; paper's bounds."""
    k = best_cadence(rows, objective, PAPER_WIDTH)
    one = gain(rows, name(1, PAPER_WIDTH), "plain", objective=objective)
    return one, gain(rows, name(PAPER_K, PAPER_WIDTH), name(k, PAPER_WIDTH), objective=objective), k


def _small_cadences(rows: list[Run]) -> str:
    cells = []
    for objective in OBJECTIVES:
        one, middle, k = _against(rows, objective)
        cells.append(f"{objective.upper()} k = 1 against plain {one.signed}, k = {PAPER_K} against {k} {middle.signed}")
    return "; ".join(cells)


def _small_is_worst(rows: list[Run]) -> str:
    """Compare k = 1 with plain, and a k of the paper's range with the best k."""
    found = {objective.upper(): _against(rows, objective) for objective in OBJECTIVES}
    worst = [name for name, (one, _, _) in found.items() if one.high < 0]
    good = [name for name, (_, middle, _) in found.items() if middle.high >= 0]
    if len(worst) == len(good) == len(found):
        return "holds"
    if not worst and not good:
        return "does not hold"
    return (
        f"holds only in part: k = 1 is worse than plain for {', '.join(worst) or 'none'}; "
        f"k = {PAPER_K} is as good as the best k for {', '.join(good) or 'none'}"
    )


EXPERIMENT = Experiment(
    name="sync",
    title="How often to sync",
    kind=Run,
    run=run,
    figure=figure,
    paragraph=paragraph,
    claims=(
        Claim(
            "on small models k = 1 collapses, k of 12 to 24 is good",
            "maths: k = 1 collapses; k = 12: .605, k = 20: .60, online .62",
            _small_cadences,
            _small_is_worst,
            "With k = 1 all three losses become one linear contrastive estimator without a trust region.",
        ),
    ),
    protocol=PROTOCOL,
    arms=[arms(loss) for loss in OBJECTIVES],
)
