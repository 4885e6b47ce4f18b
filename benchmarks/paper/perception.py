"""The clamp, or humanline sampling, of which the clamp is the practical form? Both with a synced reference.

The plain arm and the clamp's are those of ``equal``: if its results were made under this protocol they are read,
otherwise they are trained here.
"""

from pathlib import Path

from benchmarks.paper import equal
from benchmarks.paper.arms import CADENCES, LEARNING_RATES, varied
from benchmarks.paper.drawing import learning_curves
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.intervals import Interval, cpu_seconds, final, gain, mean_reward, wins
from benchmarks.paper.protocol import Arms, Protocol
from benchmarks.paper.run_rows import Run
from humanline_fused.tiny import Loss, Setting

GAMMAS = (0.1, 0.25, 0.5, 1.0)
"""γ_P: kept samples are distributed as ``ref^(1 − g) policy^g``, g = γ_P − .01; .5 is the published default."""
GAMMA_R = 0.01

SHARED = ("plain", "humanline")
ARMS = (*SHARED, "sampling")


def arms(loss: Loss) -> Arms:
    """Return the arm of an objective that ``equal`` does not have: 48 settings."""
    made = [Setting("sampling", gamma_P=g, gamma_R=GAMMA_R, sync_every=k) for g in GAMMAS for k in CADENCES]
    return {"sampling": [one for s in made for one in varied(s, learning_rate=LEARNING_RATES["humanline"][loss])]}


def run(protocol: Protocol) -> list[Run]:
    return equal.beside("perception", arms, SHARED, protocol)


def figure(rows: list[Run], image: Path) -> None:
    learning_curves(rows, ARMS, image)


def chosen(rows: list[Run], objective: str, arm: str) -> str:
    """Return the chosen setting in words."""
    if arm in SHARED:
        return equal.chosen(rows, objective, arm)
    row = final(rows, objective=objective, arm=arm)[0]
    return f"lr {row.learning_rate:g}, γ_P {row.gamma_P:g}, k = {row.sync_every}, {row.unclamped or 0:.0%} kept"


def paragraph(rows: list[Run]) -> str:
    lines = [
        equal.summary(rows, "sampling", "humanline", "Sampling ends below the clamp with"),
        "",
        "| | plain | clamp and sync | sampling and sync | sampling − clamp | sampling − plain | settings ≥ .8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for objective in equal.OBJECTIVES:
        cells = [f"{mean_reward(rows, objective=objective, arm=arm)} ({chosen(rows, objective, arm)})" for arm in ARMS]
        for over in ("humanline", "plain"):
            difference: Interval = gain(rows, "sampling", over, objective=objective)
            cells.append(f"{difference.signed}, {wins(rows, 'sampling', over, objective=objective)} seeds")
        cells.append(", ".join(equal.above(rows, objective, arm, 0.8) for arm in ARMS))
        lines.append(f"| {objective.upper()} | {' | '.join(cells)} |")
    mine = [row for row in rows if row.experiment == "perception"]
    seeds = len({row.seed for row in rows if row.phase == "final"})
    read_from = "; the other arms are those of `equal`" if len(mine) < len(rows) else ""
    lines += [
        "",
        f"48 settings for every arm, {seeds} final seeds; {len(mine)} runs, {cpu_seconds(mine):.0f} CPU seconds"
        f"{read_from}.",
    ]
    return "\n".join(lines)


EXPERIMENT = Experiment(
    name="perception",
    title="Clamp or sampling",
    kind=Run,
    run=run,
    figure=figure,
    paragraph=paragraph,
    arms=(GAMMAS, GAMMA_R, [arms(loss) for loss in equal.OBJECTIVES], equal.EXPERIMENT.arms),
)
