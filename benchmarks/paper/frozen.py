"""The clamp alone, with its width tuned: does the sync add anything to it?

The other arms are those of ``equal``: if its results were made under this protocol they are read, otherwise they are
trained here.
"""

import math
from pathlib import Path

from benchmarks.paper import equal
from benchmarks.paper.arms import LEARNING_RATES, clamped, varied
from benchmarks.paper.drawing import learning_curves
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.intervals import cpu_seconds, final, gain, mean_reward, wins
from benchmarks.paper.protocol import Arms, Protocol
from benchmarks.paper.run_rows import Run
from humanline_fused.tiny import Loss

WIDTHS = (0.1, 0.2, 0.4, 0.75, 1.5, 3.0)
BETAS, EPSILONS = (0.1, 1.0), (0.2, math.inf)
SHARED = equal.ARMS
ARMS = ("plain", "clamp", "humanline", "online")


def arms(loss: Loss) -> Arms:
    """Return the arm of an objective that ``equal`` does not have: 48 settings."""
    other = {"epsilon": EPSILONS} if loss == "grpo" else {"beta": BETAS}
    rates = LEARNING_RATES["humanline"][loss]
    return {"clamp": [one for w in WIDTHS for one in varied(clamped(w), **other, learning_rate=rates)]}


def run(protocol: Protocol) -> list[Run]:
    return equal.beside("frozen", arms, SHARED, protocol)


def figure(rows: list[Run], image: Path) -> None:
    learning_curves(rows, ARMS, image, {"clamp": "clamp, frozen reference", "humanline": "humanline (clamp and sync)"})


def chosen(rows: list[Run], objective: str, arm: str) -> str:
    """Return the chosen setting in words."""
    if arm in SHARED:
        return equal.chosen(rows, objective, arm)
    row = final(rows, objective=objective, arm=arm)[0]
    other = f"ε {row.epsilon:g}" if objective == "grpo" else f"β {row.beta:g}"
    return f"lr {row.learning_rate:g}, ±{row.width:g}, {other}"


def paragraph(rows: list[Run]) -> str:
    others = {"plain": "tuned plain training", "humanline": "clamp and sync", "online": "online training"}
    lines = [
        *(f"- {equal.summary(rows, 'clamp', over, 'The clamp alone', other)}" for over, other in others.items()),
        "",
        f"| | {' | '.join(ARMS)} | clamp − humanline | clamp − online | settings ≥ .8 of 48: clamp, humanline |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for objective in equal.OBJECTIVES:
        cells = [f"{mean_reward(rows, objective=objective, arm=arm)} ({chosen(rows, objective, arm)})" for arm in ARMS]
        for over in ("humanline", "online"):
            difference = gain(rows, "clamp", over, objective=objective).signed
            cells.append(f"{difference}, {wins(rows, 'clamp', over, objective=objective)} seeds")
        cells.append(", ".join(equal.above(rows, objective, arm, 0.8) for arm in ("clamp", "humanline")))
        lines.append(f"| {objective.upper()} | {' | '.join(cells)} |")
    mine = [row for row in rows if row.experiment == "frozen"]
    lines += ["", f"{len(mine)} runs, {cpu_seconds(mine):.0f} CPU seconds; the other arms are those of `equal`."]
    return "\n".join(lines)


EXPERIMENT = Experiment(
    name="frozen",
    title="The clamp alone",
    kind=Run,
    run=run,
    figure=figure,
    paragraph=paragraph,
    arms=([arms(loss) for loss in equal.OBJECTIVES], equal.EXPERIMENT.arms),
)
