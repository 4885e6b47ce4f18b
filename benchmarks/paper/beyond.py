"""Settings that the paper does not vary: noisy rewards, several epochs, the answers' length, gradient clipping."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from benchmarks.paper.arms import humanline, online, plain, varied
from benchmarks.paper.data_quality import DataRun, with_diagnostics
from benchmarks.paper.drawing import color, line, panels, save
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.intervals import Interval, effort, final, gain, mean_reward, wins
from benchmarks.paper.protocol import SEEDS, Arms, Comparison, Protocol, Start
from humanline_fused.tiny import Policies, Sorting, Trainings

SYNC_EVERY = 50
WIDTHS = (0.3, 1.5)
BETAS = (0.1, 4.0)
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
HIGHER = (1e-3, 3e-3, 1e-2)
"""Learning rates of humanline and of online training."""


@dataclass(frozen=True)
class Condition:
    """One change of the usual training: DPO, exact rewards, one epoch, five digits, gradients of norm 1 at most."""

    group: str
    value: float
    trainings: Trainings = field(default_factory=lambda: Trainings("dpo"))
    start: Start = field(default_factory=Start)
    max_grad_norm: float = 1.0

    @property
    def name(self) -> str:
        """Its name in the rows."""
        return f"{self.group} {self.value:g}"


def _digits(number: int) -> Start:
    return Start(Policies(Sorting(digits=number)))


USUAL = Condition("usual", 0)
CONDITIONS = (
    USUAL,
    *(Condition("reward noise", noise, Trainings("dpo", noise=noise)) for noise in (0.1, 0.2)),
    *(Condition("epochs", epochs, Trainings("dpo", epochs=epochs)) for epochs in (2, 4)),
    *(Condition("digits", number, start=_digits(number)) for number in (3, 8)),
    *(Condition("max_grad_norm", norm, max_grad_norm=norm) for norm in (0.1, 0.3, 3.0)),
)
GROUPS = {"reward noise": 0.0, "epochs": 1.0, "digits": 5.0, "max_grad_norm": 1.0}
"""What is varied, and its usual value."""


def arms(condition: Condition) -> Arms:
    """Return six settings of every arm: two β or widths times three learning rates.

    Online training has no second epoch, because its samples would no longer be the policy's own. Gradients are clipped
    for the offline arms alone.
    """
    usual = plain("dpo")
    made = {
        "plain": varied(usual, beta=BETAS, learning_rate=LEARNING_RATES),
        "humanline": [one for width in WIDTHS for one in varied(humanline(SYNC_EVERY, width), learning_rate=HIGHER)],
    }
    if condition.group not in ("epochs", "max_grad_norm"):
        made["online"] = varied(online(usual), beta=BETAS, learning_rate=HIGHER)
    return {
        arm: [replace(one, max_grad_norm=condition.max_grad_norm) for one in settings] for arm, settings in made.items()
    }


def run(protocol: Protocol) -> list[DataRun]:
    found: list[DataRun] = []
    for condition in CONDITIONS:
        comparison = Comparison("beyond", condition.name, condition.trainings, protocol, condition.start)
        mine = arms(condition)
        mine = {arm: settings[::5] for arm, settings in mine.items()} if protocol.small else mine
        found += with_diagnostics(comparison.compare(mine), comparison, plain("dpo"))
    return found


def values(group: str) -> dict[float, str]:
    """Return the values of a group in order, with their conditions' names."""
    usual = {GROUPS[group]: USUAL.name}
    others = {one.value: one.name for one in CONDITIONS if one.group == group}
    return dict(sorted((usual | others).items()))


def over_plain(rows: list[DataRun], condition: str) -> Interval:
    """Return humanline's gain over plain."""
    return gain(rows, "humanline", "plain", condition=condition)


def figure(rows: list[DataRun], image: Path) -> None:
    figure, axes = panels(len(GROUPS), 3.6)
    for one, group in zip(axes, GROUPS, strict=True):
        known = values(group)
        for arm in ("plain", "humanline", "online"):
            shown = {x: found for x, c in known.items() if (found := final(rows, condition=c, arm=arm))}
            places = [list(known).index(x) for x in shown]
            rewards = [[row.reward for row in found] for found in shown.values()]
            line(one, places, rewards, arm, color(arm))
            if len(shown) == 1:
                note = f"{arm}: only the usual run"
                one.annotate(note, (places[0], fmean(rewards[0])), (6, -3), textcoords="offset points", fontsize=8)
        one.set_xticks(range(len(known)), [f"{x:g}" for x in known])
        one.set_xlabel(group)
        one.set_ylim(0.2, 1)
    axes[0].set_title("DPO", loc="left")
    axes[0].set_ylabel("held-out reward, 95 % interval")
    axes[0].legend(frameon=False, fontsize=9, loc="lower left")
    save(figure, image)


def paragraph(rows: list[DataRun]) -> str:
    lines = []
    for group in GROUPS:
        worse = [f"{x:g}" for x, name in values(group).items() if over_plain(rows, name).high < 0]
        none = [f"{x:g}" for x, name in values(group).items() if not _shown(over_plain(rows, name))]
        better = [f"{x:g}" for x, name in values(group).items() if over_plain(rows, name).low > 0]
        parts = {"worse than plain at": worse, "not shown to differ at": none, "better at": better}
        words = [f"{part} {', '.join(found)}" for part, found in parts.items() if found]
        lines.append(f"- {group}: humanline is {'; '.join(words)}.")
    lines += ["", "| DPO | start | plain | humanline | online | humanline − plain |", "|---|---|---|---|---|---|"]
    for condition in dict.fromkeys(row.condition for row in rows):
        first = final(rows, condition=condition, arm="plain")
        cells = [f"{sum(row.start for row in first) / len(first):.3f}"]
        for arm in ("plain", "humanline", "online"):
            mine = final(rows, condition=condition, arm=arm)
            cells.append(f"{mean_reward(rows, condition=condition, arm=arm)} ({mine[0].words})" if mine else "")
        cells.append(f"{over_plain(rows, condition).signed}, {wins(rows, 'humanline', 'plain', condition=condition)}")
        lines.append(f"| {condition.removesuffix(' 0')} | {' | '.join(cells)} |")
    seeds = len(final(rows, condition=USUAL.name, arm="plain"))
    lines += [
        "",
        "Later epochs repeat the samples, at 200 steps in all; online training has one epoch and max_grad_norm 1. ",
    ]
    lines[-1] += f"6 settings for every arm, {seeds} final seeds; {effort(rows)}"
    return "\n".join(lines)


def _shown(interval: Interval) -> bool:
    return interval.low > 0 or interval.high < 0


EXPERIMENT = Experiment(
    name="beyond",
    title="Beyond the paper: noise, epochs, length, gradient clipping",
    kind=DataRun,
    run=run,
    figure=figure,
    paragraph=paragraph,
    protocol=Protocol(survivors=2, final=SEEDS[:8]),
    arms=[(condition.name, arms(condition)) for condition in CONDITIONS],
)
