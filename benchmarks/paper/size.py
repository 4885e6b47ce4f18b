"""Does the gain grow or shrink with the policy? DPO from 3 thousand to 1 million parameters."""

from dataclasses import replace
from pathlib import Path

from benchmarks.paper.arms import humanline, online, plain, varied
from benchmarks.paper.drawing import color, line, panels, save
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.intervals import cpu_seconds, final, gain, mean_reward, wins
from benchmarks.paper.protocol import SEEDS, Arms, Comparison, Protocol, Start
from benchmarks.paper.run_rows import Run
from humanline_fused.tiny import Demonstrations, Policies, Setting, Trainings

TUNED = (24, 48, 190, 680)
"""Hidden widths whose settings are tuned."""

LARGEST = 950
"""Hidden width that takes the settings chosen at 680, with the learning rate times 680 / 950."""

ARMS = ("plain", "humanline", "online")
RATES = (0.3, 1.0, 3.0)
"""Learning rates around the usual ones, times 48 over the hidden width."""


def policies(hidden: int) -> Policies:
    """Return policies of a width."""
    return Policies(hidden=hidden)


def start(hidden: int) -> Start:
    """Return initial policies; wide ones learn with smaller steps."""
    rate = 3e-3 * min(1.0, (48 / hidden) ** 0.5)
    return Start(policies(hidden), Demonstrations(learning_rate=rate))


def arms(hidden: int) -> Arms:
    """Return six settings of every arm: two β or widths of the clamp times three learning rates."""

    def rates(usual: float) -> list[float]:
        return [usual * factor * 48 / hidden for factor in RATES]

    widths = [humanline(100, width) for width in (0.2, 0.5)]
    return {
        "plain": varied(plain("dpo"), beta=(1.0, 4.0), learning_rate=rates(1e-3)),
        "humanline": [one for setting in widths for one in varied(setting, learning_rate=rates(3e-3))],
        "online": varied(online(plain("dpo")), beta=(0.1, 0.3), learning_rate=rates(3e-3)),
    }


def carried(rows: list[Run], arm: str, hidden: int) -> Setting:
    """Return the setting that an arm's final seeds had, with the learning rate for the largest width."""
    row = final(rows, arm=arm, condition=_name(hidden))[0]
    same = next(s for s in arms(hidden)[arm] if _is(s, row))
    return replace(same, learning_rate=same.learning_rate * hidden / LARGEST)


def _is(setting: Setting, row: Run) -> bool:
    chosen = (setting.learning_rate, setting.beta, setting.log_epsilon_R)
    return chosen == (row.learning_rate, row.beta, row.width)


def _name(hidden: int) -> str:
    return f"{policies(hidden).num_parameters} parameters"


def run(protocol: Protocol) -> list[Run]:
    found: list[Run] = []
    for hidden in TUNED:
        mine = arms(hidden)
        mine = {arm: settings[:2] for arm, settings in mine.items()} if protocol.small else mine
        found += _comparison(hidden, protocol).compare(mine)
    found += _comparison(LARGEST, protocol).sweep({arm: [carried(found, arm, TUNED[-1])] for arm in ARMS})
    return found


def _comparison(hidden: int, protocol: Protocol) -> Comparison:
    return Comparison("size", _name(hidden), Trainings("dpo"), protocol, start(hidden))


def figure(rows: list[Run], image: Path) -> None:
    figure, (one,) = panels(1, width=5.2)
    for arm in ARMS:
        sizes = [policies(hidden).num_parameters for hidden in (*TUNED, LARGEST)]
        found = [[r.reward for r in final(rows, arm=arm, condition=_name(hidden))] for hidden in (*TUNED, LARGEST)]
        line(one, sizes, found, arm, color(arm))
    one.set_xscale("log")
    one.set_ylim(0.3, 1)
    one.set_xlabel("parameters")
    one.set_ylabel("held-out reward, 95 % interval")
    one.legend(frameon=False, fontsize=9)
    save(figure, image)


def paragraph(rows: list[Run]) -> str:
    names = [_name(hidden) for hidden in (*TUNED, LARGEST)]
    gains = [gain(rows, "humanline", "plain", condition=name) for name in names]
    ends = gains[0], gains[-1]
    moves = ends[0].high < ends[1].low or ends[1].high < ends[0].low
    trend = "The intervals of the smallest and the largest size do not overlap." if moves else "No trend can be shown."
    low, high = min(one.mean for one in gains), max(one.mean for one in gains)
    lines = [f"Humanline − plain is {low:+.3f} to {high:+.3f} over all sizes. {trend}", ""]
    lines += ["| parameters | plain | humanline | online | humanline − plain |", "|---|---|---|---|---|"]
    for hidden, name, difference in zip((*TUNED, LARGEST), names, gains, strict=True):
        cells = [str(mean_reward(rows, arm=arm, condition=name)) for arm in ARMS]
        seeds = wins(rows, "humanline", "plain", condition=name)
        lines.append(
            f"| {policies(hidden).num_parameters:,} | {' | '.join(cells)} | {difference.signed}, {seeds} seeds |"
        )
    lines += [
        "",
        f"Six settings for every arm and size; the largest takes those chosen at {policies(TUNED[-1]).num_parameters:,}"
        f" parameters. {len(rows)} runs, {cpu_seconds(rows):.0f} CPU seconds. Larger policies were not tried.",
    ]
    return "\n".join(lines)


EXPERIMENT = Experiment(
    name="size",
    title="Size of the policy",
    kind=Run,
    run=run,
    figure=figure,
    paragraph=paragraph,
    protocol=Protocol(first=(900,), second=(901,), survivors=2, final=SEEDS[:6]),
    arms=[arms(hidden) for hidden in TUNED],
)
