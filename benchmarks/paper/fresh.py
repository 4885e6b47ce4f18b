"""The settings that ``equal`` chose, on seeds that nothing has seen before."""

from dataclasses import replace
from pathlib import Path

from benchmarks.paper import equal
from benchmarks.paper.drawing import learning_curves
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.intervals import cpu_seconds, final, gain, mean_reward, wins
from benchmarks.paper.protocol import Comparison, Protocol
from benchmarks.paper.run_rows import Run
from benchmarks.results import RESULTS, read
from humanline_fused.tiny import Loss, Setting, Trainings

PROTOCOL = Protocol(first=(), second=(), final=tuple(range(3000, 3016)))


def chosen(rows: list[Run], loss: Loss, arm: str) -> Setting:
    """Return the setting of an arm's final seeds in the rows of ``equal``."""
    row = final(rows, objective=loss, arm=arm)[0]
    settings = (one for one in equal.arms(loss)[arm] if _setting(one) == row.setting[:5])
    return next(settings)


def _setting(one: Setting) -> tuple[object, ...]:
    return (one.learning_rate, one.beta, one.epsilon, one.log_epsilon_R, one.sync_every)


def run(protocol: Protocol) -> list[Run]:
    if protocol.small:
        known = equal.run(replace(protocol, final=equal.EXPERIMENT.protocol.final[:6]))
    else:
        known = read(RESULTS / "paper/equal.csv", Run)[1]
    found = []
    for loss in equal.OBJECTIVES:
        mine = {arm: [chosen(known, loss, arm)] for arm in equal.ARMS}
        found += Comparison("fresh", "", Trainings(loss), protocol).sweep(mine)
    return found


def figure(rows: list[Run], image: Path) -> None:
    learning_curves(rows, equal.ARMS, image)


def paragraph(rows: list[Run]) -> str:
    lines = [equal.summary(rows), "", "| | plain | humanline | online | humanline − plain | humanline − online |"]
    lines.append("|---|---|---|---|---|---|")
    for objective in equal.OBJECTIVES:
        cells = [str(mean_reward(rows, objective=objective, arm=arm)) for arm in equal.ARMS]
        for over in ("plain", "online"):
            difference = gain(rows, "humanline", over, objective=objective).signed
            cells.append(f"{difference}, {wins(rows, 'humanline', over, objective=objective)} seeds")
        lines.append(f"| {objective.upper()} | {' | '.join(cells)} |")
    seeds = sorted({row.seed for row in rows})
    lines += ["", f"Seeds {seeds[0]} to {seeds[-1]}; {len(rows)} runs, {cpu_seconds(rows):.0f} CPU seconds."]
    return "\n".join(lines)


EXPERIMENT = Experiment(
    name="fresh",
    title="The chosen settings on new seeds",
    kind=Run,
    run=run,
    figure=figure,
    paragraph=paragraph,
    protocol=PROTOCOL,
    arms=equal.EXPERIMENT.arms,
)
