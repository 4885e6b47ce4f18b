"""Plain, humanline and online training with 48 settings each: is anything gained once all are tuned alike?"""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.paper.arms import online, plain, tuned_humanline, tuned_regularisation
from benchmarks.paper.drawing import learning_curves
from benchmarks.paper.experiment import Claim, Experiment
from benchmarks.paper.intervals import Interval, effort, final, gain, mean_reward, wins
from benchmarks.paper.protocol import Arms, Comparison, Protocol
from benchmarks.paper.run_rows import Run
from benchmarks.results import RESULTS, agrees, read
from humanline_fused.tiny import Loss, Trainings

OBJECTIVES: tuple[Loss, ...] = ("dpo", "kto", "grpo")
ARMS = ("plain", "humanline", "online")


def arms(loss: Loss) -> Arms:
    """Return the arms of an objective."""
    return {
        "plain": tuned_regularisation(plain(loss), loss),
        "humanline": tuned_humanline(loss),
        "online": tuned_regularisation(online(plain(loss)), loss, "humanline"),
    }


def run(protocol: Protocol) -> list[Run]:
    found = []
    for loss in OBJECTIVES:
        comparison = Comparison("equal", "", Trainings(loss), protocol)
        mine = arms(loss)
        found += comparison.compare({arm: s[::16] for arm, s in mine.items()} if protocol.small else mine)
    return found


def beside(name: str, own: Callable[[Loss], Arms], shared: Sequence[str], protocol: Protocol) -> list[Run]:
    """Compare arms of another experiment with some of this one's, under its protocol.

    The rows of the shared arms are read from this experiment's results if those have the same protocol, otherwise the
    arms are trained.
    """
    known = agrees(RESULTS / "paper/equal.csv", EXPERIMENT.facts(protocol), ["protocol"])
    found = [row for row in read(RESULTS / "paper/equal.csv", Run)[1] if row.arm in shared] if known else []
    for loss in OBJECTIVES:
        mine = own(loss)
        if not known:
            mine |= {arm: settings for arm, settings in arms(loss).items() if arm in shared}
        if protocol.small:
            mine = {arm: settings[::16] for arm, settings in mine.items()}
        found += Comparison(name, "", Trainings(loss), protocol).compare(mine)
    return found


def figure(rows: list[Run], image: Path) -> None:
    learning_curves(rows, ARMS, image)


def above(rows: list[Run], objective: str, arm: str, reward: float) -> str:
    """Return how many of an arm's settings reach a reward in the first round of tuning."""
    mine = [row for row in rows if (row.phase, row.objective, row.arm) == ("tuning", objective, arm)]
    by_setting: dict[tuple, list[float]] = {}
    for row in mine:
        by_setting.setdefault(row.setting, []).append(row.reward)
    means = [sum(values) / len(values) for values in by_setting.values()]
    return f"{sum(mean >= reward for mean in means)} of {len(means)}"


def chosen(rows: list[Run], objective: str, arm: str) -> str:
    """Return the chosen setting in words."""
    row = final(rows, objective=objective, arm=arm)[0]
    parts = [f"lr {row.learning_rate:g}"]
    if arm == "humanline":
        parts += [f"±{row.width:g}", f"k = {row.sync_every}"]
    else:
        parts.append(f"ε {row.epsilon:g}" if objective == "grpo" else f"β {row.beta:g}")
    return ", ".join(parts)


def closed(rows: list[Run], objective: str) -> tuple[Interval, Interval]:
    """Return humanline's and online's gain over plain."""
    return gain(rows, "humanline", "plain", objective=objective), gain(rows, "online", "plain", objective=objective)


def summary(
    rows: list[Run],
    arm: str | Callable[[str], str] = "humanline",
    over: str = "plain",
    subject: str = "Humanline",
    other: str = "tuned plain training",
) -> str:
    """Return in a sentence where an arm loses to another, and where it gains.

    Args:
        arm: its name, or a function from the objective to it.
        subject, other: what the sentence calls the two arms.
    """
    gains = {o.upper(): gain(rows, arm(o) if callable(arm) else arm, over, objective=o) for o in OBJECTIVES}
    parts = [
        ("below {}", [o for o, one in gains.items() if one.high < 0]),
        ("level with {}, as far as the seeds can show,", [o for o, one in gains.items() if one.low <= 0 <= one.high]),
        ("above {}", [o for o, one in gains.items() if one.low > 0]),
    ]
    found = [f"{place} with {', '.join(names)}" for place, names in parts if names]
    first, *rest = found
    return f"{subject} ends {'; '.join([first.format(other), *(one.format('it') for one in rest)])}."


def paragraph(rows: list[Run]) -> str:
    lines = [summary(rows), ""]
    lines += [
        "| | plain | humanline | online | humanline − plain | settings ≥ .8: plain, humanline, online |",
        "|---|---|---|---|---|---|",
    ]
    for objective in OBJECTIVES:
        cells = [f"{mean_reward(rows, objective=objective, arm=arm)} ({chosen(rows, objective, arm)})" for arm in ARMS]
        shares = ", ".join(above(rows, objective, arm, 0.8) for arm in ARMS)
        ours = gain(rows, "humanline", "plain", objective=objective).signed
        cells += [f"{ours}, {wins(rows, 'humanline', 'plain', objective=objective)} seeds", shares]
        lines.append(f"| {objective.upper()} | {' | '.join(cells)} |")
    seeds = len({row.seed for row in rows if row.phase == "final"})
    lines += ["", f"48 settings for every arm, {seeds} final seeds; {effort(rows)}"]
    return "\n".join(lines)


def _ours(rows: list[Run]) -> str:
    return "; ".join(f"{o.upper()} {gain(rows, 'online', 'plain', objective=o).signed}" for o in OBJECTIVES)


def _holds(rows: list[Run], arm: str) -> str:
    holding = [o.upper() for o in OBJECTIVES if gain(rows, arm, "plain", objective=o).low > 0]
    if len(holding) == len(OBJECTIVES):
        return "holds"
    return f"holds only for {', '.join(holding)}" if holding else "does not hold"


def _closing(rows: list[Run]) -> str:
    cells = []
    for objective in OBJECTIVES:
        ours, theirs = closed(rows, objective)
        share = f"{ours.mean / theirs.mean:.0%} of the gap" if theirs.low > 0 else "no gap"
        cells.append(f"{objective.upper()} {ours.signed}, {share}")
    return "; ".join(cells)


def _parity(rows: list[Run]) -> str:
    """Parity needs a gain over plain, and no loss to online that the seeds can show."""
    parity = [o.upper() for o in OBJECTIVES if gain(rows, "humanline", "online", objective=o).high >= 0]
    gains = [o.upper() for o in OBJECTIVES if gain(rows, "humanline", "plain", objective=o).low > 0]
    if len(parity) == len(gains) == len(OBJECTIVES):
        return "holds"
    part = f"a gain for {', '.join(gains)}" if gains else "no gain"
    return f"holds only in part: {part}; parity with online for {', '.join(parity) or 'none'}"


EXPERIMENT = Experiment(
    name="equal",
    title="Equal tuning",
    kind=Run,
    run=run,
    figure=figure,
    paragraph=paragraph,
    claims=(
        Claim(
            "online beats offline",
            "win rate 1.4x DPO, 1.3x KTO, 1.6x GRPO",
            _ours,
            lambda rows: _holds(rows, "online"),
            "Fresh samples keep the trust region around the current policy.",
        ),
        Claim(
            "offline + humanline = online",
            "parity in win rate",
            _closing,
            _parity,
            "A clamp of the right width moves the trust region along; the samples stay those of the start.",
        ),
    ),
    arms=[arms(loss) for loss in OBJECTIVES],
)
