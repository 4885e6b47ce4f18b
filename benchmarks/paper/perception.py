"""The clamp, or humanline sampling, of which the clamp is the practical form?

Sampling is tuned twice: with a synced reference, and with a frozen one and other β (GRPO: ε).

The plain arm and the clamp's are those of ``equal``: if its results were made under this protocol they are read,
otherwise they are trained here.
"""

import math
from pathlib import Path

from benchmarks.paper import equal
from benchmarks.paper.arms import CADENCES, LEARNING_RATES, varied
from benchmarks.paper.drawing import learning_curves
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.intervals import best_of_tuning, effort, final, gain, mean_reward, wins
from benchmarks.paper.protocol import Arms, Protocol
from benchmarks.paper.run_rows import Run
from humanline_fused.tiny import Loss, Setting

GAMMAS = (0.1, 0.25, 0.5, 1.0)
"""γ_P: kept samples are distributed as ``ref^(1 − g) policy^g``, g = γ_P − .01; .5 is the published default."""
GAMMA_R = 0.01

BETAS, EPSILONS = (0.1, 1.0, 4.0), (0.2, 1.5, math.inf)

SHARED, SAMPLED = ("plain", "humanline"), ("sampling", "sampling, frozen")
ARMS = (*SHARED, *SAMPLED)


def arms(loss: Loss) -> Arms:
    """Return the arms of an objective that ``equal`` does not have, 48 settings each."""
    setting, rates = Setting("sampling", gamma_R=GAMMA_R), LEARNING_RATES["humanline"][loss]
    bound = {"epsilon": EPSILONS} if loss == "grpo" else {"beta": BETAS}
    return {
        "sampling": varied(setting, gamma_P=GAMMAS, sync_every=CADENCES, learning_rate=rates),
        "sampling, frozen": varied(setting, gamma_P=GAMMAS, **bound, learning_rate=rates),
    }


def run(protocol: Protocol) -> list[Run]:
    return equal.beside("perception", arms, SHARED, protocol)


def figure(rows: list[Run], image: Path) -> None:
    learning_curves(rows, (*SAMPLED, *SHARED), image)


def chosen(rows: list[Run], objective: str, arm: str) -> str:
    """Return the chosen setting in words."""
    if arm in SHARED:
        return equal.chosen(rows, objective, arm)
    row = final(rows, objective=objective, arm=arm)[0]
    other = f"ε {row.epsilon:g}" if objective == "grpo" else f"β {row.beta:g}"
    third = other if row.sync_every is None else f"k = {row.sync_every}"
    return f"lr {row.learning_rate:g}, γ_P {row.gamma_P:g}, {third}, {row.unclamped or 0:.0%} kept"


def best(rows: list[Run], objective: str) -> str:
    """Return the form of sampling that the tuning prefers."""
    return best_of_tuning(rows, SAMPLED, objective=objective)


def summary(rows: list[Run]) -> str:
    """Return in a sentence where sampling loses to the clamp, and where it gains."""
    subject = "Sampling, in the form that the tuning prefers,"
    return equal.summary(rows, lambda objective: best(rows, objective), "humanline", subject, "clamp and sync")


def paragraph(rows: list[Run]) -> str:
    lines = [
        summary(rows),
        "",
        "| | plain | clamp and sync | sampling and sync | sampling, frozen reference | its better form − clamp "
        "| its better form − plain | settings ≥ .8, in this order |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for objective in equal.OBJECTIVES:
        cells = [f"{mean_reward(rows, objective=objective, arm=arm)} ({chosen(rows, objective, arm)})" for arm in ARMS]
        for over in ("humanline", "plain"):
            arm = best(rows, objective)
            difference = gain(rows, arm, over, objective=objective).signed
            cells.append(f"{difference}, {wins(rows, arm, over, objective=objective)} seeds")
        cells.append(", ".join(equal.above(rows, objective, arm, 0.8) for arm in ARMS))
        lines.append(f"| {objective.upper()} | {' | '.join(cells)} |")
    mine = [row for row in rows if row.experiment == "perception"]
    seeds = len({row.seed for row in rows if row.phase == "final"})
    read_from = " The other arms are those of `equal`." if len(mine) < len(rows) else ""
    lines += ["", f"48 settings for every arm, {seeds} final seeds; {effort(mine)}{read_from}"]
    return "\n".join(lines)


EXPERIMENT = Experiment(
    name="perception",
    title="Clamp or sampling",
    kind=Run,
    run=run,
    figure=figure,
    paragraph=paragraph,
    arms=(GAMMAS, GAMMA_R, BETAS, EPSILONS, [arms(loss) for loss in equal.OBJECTIVES], equal.EXPERIMENT.arms),
)
