"""Old samples: GRPO with fresh samples every R steps, plain with its importance ratio against humanline."""

from dataclasses import replace
from pathlib import Path

from benchmarks.paper.arms import humanline, plain, varied
from benchmarks.paper.drawing import OTHER, color, line, panels, save
from benchmarks.paper.experiment import Claim, Experiment
from benchmarks.paper.intervals import Interval, effort, final, gain, mean_reward, wins
from benchmarks.paper.protocol import SEEDS, Arms, Comparison, Protocol
from benchmarks.paper.run_rows import Run
from humanline_fused.tiny import Setting, Trainings

STEPS = 256
CONDITIONS = {"1": 1, "8": 8, "64": 64, "offline": None}
"""Steps between two draws of samples."""

ARMS: dict[str, Setting] = {"plain": plain("grpo"), "humanline k = 1": humanline(1), "humanline k = 16": humanline(16)}
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SAME_RATE = "64, learning rate 1e-4"
"""Condition in which no arm is tuned: all have one low learning rate."""


def arms(resample_every: int | None) -> Arms:
    """Return ten settings of every arm: two ε times five learning rates."""
    grid = {"epsilon": (0.2, 10.0), "learning_rate": LEARNING_RATES}
    return {name: varied(replace(one, resample_every=resample_every), **grid) for name, one in ARMS.items()}


def run(protocol: Protocol) -> list[Run]:
    found = []
    for condition, resample_every in CONDITIONS.items():
        mine = arms(resample_every)
        mine = {arm: settings[::9] for arm, settings in mine.items()} if protocol.small else mine
        found += Comparison("stale", condition, Trainings("grpo"), protocol).compare(mine)
    untuned = {arm: settings[:1] for arm, settings in arms(64).items()}
    return found + Comparison("stale", SAME_RATE, Trainings("grpo"), protocol).sweep(untuned)


def figure(rows: list[Run], image: Path) -> None:
    figure, (axes,) = panels(1, 5.2, 3.8)
    places = [every or STEPS for every in CONDITIONS.values()]
    for number, arm in enumerate(ARMS):
        groups = [[row.reward for row in final(rows, condition=one, arm=arm)] for one in CONDITIONS]
        dodged = [place * 1.08 ** (number - 1) for place in places]  # the bars of equal arms would hide each other
        line(axes, dodged, groups, arm, (color("plain"), OTHER[0], color("humanline"))[number])
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, ["1\n(online)", "8", "64", f"{STEPS}\n(offline)"])
    axes.set_ylim(0.3, 1)
    axes.set_xlabel("optimizer steps between fresh samples")
    axes.set_ylabel("expected held-out reward")
    axes.set_title("GRPO, every arm tuned (95 % bars)", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    save(figure, image)


def over_plain(rows: list[Run], arm: str, condition: str) -> Interval:
    """Return an arm's gain over plain with samples of the same age."""
    return gain(rows, arm, "plain", condition=condition)


def to_online(rows: list[Run], arm: str, condition: str) -> Interval:
    """Return an arm's difference to plain with fresh samples at every step, paired by seed."""
    fresh = final(rows, condition="1", arm="plain")
    mine = [replace(row, condition="1") for row in final(rows, condition=condition, arm=arm)]
    if arm == "plain":
        mine = [replace(row, arm="old") for row in mine]
        arm = "old"
    return gain([*fresh, *mine], arm, "plain", condition="1")


def paragraph(rows: list[Run]) -> str:
    small, usual = (f"humanline k = {k}" for k in (1, 16))
    tuned, untuned = (
        ", ".join(f"k = {k} {over_plain(rows, arm, c).signed}" for k, arm in ((16, usual), (1, small)))
        for c in ("64", SAME_RATE)
    )
    lines = [
        f"With samples up to 64 steps old, tuned humanline's reward minus that of plain GRPO is {tuned}. "
        f"With one low learning rate for all, without tuning, the difference is {untuned}.",
        "",
        "| samples are drawn every | plain | humanline k = 1 | humanline k = 16 | k = 16 − plain |",
        "|---|---|---|---|---|",
    ]
    for condition in (*CONDITIONS, SAME_RATE):
        cells = []
        for arm in ARMS:
            mine = final(rows, condition=condition, arm=arm)
            cells.append(f"{mean_reward(rows, condition=condition, arm=arm)} ({mine[0].words})")
        cells.append(f"{over_plain(rows, usual, condition).signed}, {wins(rows, usual, 'plain', condition=condition)}")
        lines.append(f"| {condition} | {' | '.join(cells)} |")
    seeds = len(final(rows, condition="1", arm="plain"))
    lines += [
        "",
        f"10 settings for every arm, {seeds} final seeds; {effort(rows)}",
    ]
    return "\n".join(lines)


def _old_samples(rows: list[Run]) -> str:
    arm = "humanline k = 16"
    cells = [f"{name} {mean_reward(rows, condition='64', arm=name).mean:.3f}" for name in ARMS]
    return (
        f"online {mean_reward(rows, condition='1', arm='plain').mean:.3f}; 64 steps old: {', '.join(cells)}; "
        f"k = 16 − online {to_online(rows, arm, '64').signed}"
    )


def _old_samples_verdict(rows: list[Run]) -> str:
    arm = "humanline k = 16"
    parity, better = to_online(rows, arm, "64").high >= 0, over_plain(rows, arm, "64").low > 0
    if parity and better:
        return "holds"
    untuned = over_plain(rows, arm, SAME_RATE).low > 0
    if better:
        return "holds only in part: better than plain, below online"
    return "holds only at one low learning rate, untuned, against plain" if untuned else "does not hold"


def _cadences(rows: list[Run]) -> dict[str, Interval]:
    """Return the reward of k = 16 minus that of k = 1, by the age of the samples."""
    return {one: gain(rows, "humanline k = 16", "humanline k = 1", condition=one) for one in CONDITIONS}


def _collapse(rows: list[Run]) -> str:
    return "k = 16 − k = 1 by R: " + "; ".join(f"{one} {found.signed}" for one, found in _cadences(rows).items())


def _collapse_verdict(rows: list[Run]) -> str:
    holding = [one for one, found in _cadences(rows).items() if found.low > 0]
    if len(holding) == len(CONDITIONS):
        return "holds"
    return f"holds only with samples of R = {' or '.join(holding)}" if holding else "does not hold"


EXPERIMENT = Experiment(
    name="stale",
    title="Old samples",
    kind=Run,
    run=run,
    figure=figure,
    paragraph=paragraph,
    claims=(
        Claim(
            "humanline needs fresh samples 64x less often than online training",
            "accuracy .62 online, .605 humanline (k = 12), .50 plain with 64x older samples",
            _old_samples,
            _old_samples_verdict,
            "Plain GRPO's ratio is the exact importance ratio of the old samples; a sync gives that up.",
        ),
        Claim(
            "k = 1 collapses on verifiable rewards, k of 12 to 24 does not",
            "collapse at k = 1",
            _collapse,
            _collapse_verdict,
            "At k = 1 the ratio stays near 1, so nothing limits how far the policy leaves the data.",
        ),
    ),
    protocol=Protocol(survivors=3, final=SEEDS[:12], steps=STEPS),
    arms=[arms(every) for every in CONDITIONS.values()],
)
