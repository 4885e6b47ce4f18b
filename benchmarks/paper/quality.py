"""The quality of offline data: samples of the initial policy at five temperatures, and of other models."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.paper.arms import humanline, online, plain, varied
from benchmarks.paper.data_quality import DataRun, with_diagnostics
from benchmarks.paper.drawing import color, line, panels, save
from benchmarks.paper.experiment import Claim, Experiment
from benchmarks.paper.intervals import Interval, effort, final, gain, mean_reward
from benchmarks.paper.protocol import SEEDS, Arms, Comparison, Protocol, Start
from humanline_fused.tiny import Demonstrations, Loss, Setting, Trainings

OBJECTIVES: tuple[Loss, ...] = ("grpo", "dpo")
TEMPERATURES = (0.7, 1.0, 1.5, 2.0, 3.0)
MODELS = {
    "other model, same mix": Start(demonstrations=Demonstrations(variant=1)),
    "other model, 10 % right": Start(demonstrations=Demonstrations(reversed=0.9, until=0.09, variant=2)),
    "other model, 75 % right": Start(demonstrations=Demonstrations(reversed=0.2, until=0.75, variant=3)),
}
"""Other models that write the data, by what they learnt from."""

SYNC_EVERY = 50
USUAL = "humanline"
ONLINE = "online"
WIDTHS = (0.3, 1.5)
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
HIGHER = (1e-3, 3e-3, 1e-2)
"""Learning rates of online training."""

Source = tuple[float, tuple[Start, ...]]
SOURCES: dict[str, Source] = {f"start, temperature {t:g}": (t, ()) for t in TEMPERATURES}
SOURCES |= {name: (1.0, (start,)) for name, start in MODELS.items()}
"""Temperature of the samples, and the model that writes them if it is not the initial policy."""


def arms(loss: Loss, source: Source) -> Arms:
    """Return six settings of every arm: two β, ε or widths times three learning rates.

    Every reference is the initial policy. Where another model wrote the data of GRPO, an arm more has that model as its
    reference, so that its ratio is an importance ratio.
    """
    temperature, others = source
    usual = replace(plain(loss), follows_data=False)
    made: Arms = {"plain": _regularised(usual, loss)}
    if others and loss == "grpo":
        made["plain, importance ratio"] = _regularised(replace(usual, follows_data=True), loss)
    made[USUAL] = _bounded([humanline(SYNC_EVERY, width) for width in WIDTHS])
    return {
        name: [replace(one, temperature=temperature, source=len(others)) for one in settings]
        for name, settings in made.items()
    }


def _regularised(setting: Setting, loss: Loss, rates: Sequence[float] = LEARNING_RATES) -> list[Setting]:
    axis = {"epsilon": (0.2, 10.0)} if loss == "grpo" else {"beta": (0.1, 4.0)}
    return varied(setting, **axis, learning_rate=rates)


def _bounded(settings: list[Setting]) -> list[Setting]:
    return [one for setting in settings for one in varied(setting, learning_rate=LEARNING_RATES)]


def run(protocol: Protocol) -> list[DataRun]:
    found: list[DataRun] = []
    sources = dict(list(SOURCES.items())[4:6]) if protocol.small else SOURCES
    for loss in OBJECTIVES:
        mine = {ONLINE: _regularised(online(plain(loss)), loss, HIGHER)}
        found += _compared(protocol, loss, ONLINE, mine, (1.0, ()))
        for condition, source in sources.items():
            found += _compared(protocol, loss, condition, arms(loss, source), source)
    return found


def _compared(protocol: Protocol, loss: Loss, condition: str, mine: Arms, source: Source) -> list[DataRun]:
    comparison = Comparison("quality", condition, Trainings(loss), protocol, sources=source[1])
    mine = {arm: settings[::5] for arm, settings in mine.items()} if protocol.small else mine
    rows = comparison.compare(mine)
    return with_diagnostics(rows, comparison, next(iter(mine.values()))[0])


def conditions(rows: list[DataRun]) -> list[str]:
    """Return the sources of the rows, in order."""
    return [name for name in dict.fromkeys(row.condition for row in rows) if name != ONLINE]


def over_plain(rows: list[DataRun], objective: str, condition: str, arm: str = USUAL) -> Interval:
    """Return an arm's gain over plain."""
    return gain(rows, arm, "plain", objective=objective, condition=condition)


def figure(rows: list[DataRun], image: Path) -> None:
    figure, axes = panels(len(OBJECTIVES), 5.2, 4.4)
    names = conditions(rows)
    shades = {"plain": color("plain"), USUAL: color("humanline")}
    for one, objective in zip(axes, OBJECTIVES, strict=True):
        best = mean_reward(rows, objective=objective, condition=ONLINE).mean
        one.axhline(best, color=color(ONLINE), ls=":", lw=1.5, label="online")
        for arm, shade in shades.items():
            groups = [[r.reward for r in final(rows, objective=objective, condition=c, arm=arm)] for c in names]
            if all(groups):
                line(one, range(len(names)), groups, arm, shade, joined=False)
        one.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
        one.set_ylim(0, 1)
        one.set_title(objective.upper(), loc="left")
    axes[0].set_ylabel("held-out reward, 95 % interval")
    axes[0].legend(frameon=False, fontsize=9, loc="lower left")
    save(figure, image)


def paragraph(rows: list[DataRun]) -> str:
    lines = []
    for objective in OBJECTIVES:
        better, worse = _signs(rows, objective)
        best = mean_reward(rows, objective=objective, condition=ONLINE)
        lines.append(
            f"- {objective.upper()}: humanline (k = {SYNC_EVERY}) is worse than plain on {_list(worse)}, "
            f"better on {_list(better)}. "
            f"Online training reaches {best}."
        )
    for objective in OBJECTIVES:
        shown = list(arms(objective, SOURCES["start, temperature 1"]))
        head = [f"{objective.upper()}, source of the data", "its reward", "KL / token", *shown, "humanline − plain"]
        lines += ["", f"| {' | '.join(head)} |"]
        lines.append(f"|---|---|---|{'---|' * len(shown)}---|")
        for condition in conditions(rows):
            data = final(rows, objective=objective, condition=condition, arm="plain")
            cells = [
                f"{sum(getattr(row, n) or 0.0 for row in data) / len(data):.2f}" for n in ("data_reward", "data_kl")
            ]
            for arm in shown:
                cells.append(f"{mean_reward(rows, objective=objective, condition=condition, arm=arm).mean:.3f}")
            lines.append(f"| {condition} | {' | '.join(cells)} | {over_plain(rows, objective, condition).signed} |")
    exact = [name for name in MODELS if final(rows, objective="grpo", condition=name)]
    ratios = [f"{n} {over_plain(rows, 'grpo', n, 'plain, importance ratio').signed}" for n in exact]
    lines += [
        "",
        f"An exact importance ratio instead of that to the initial policy changes plain GRPO by: {'; '.join(ratios)}.",
    ]
    seeds = len(final(rows, objective="grpo", condition=ONLINE))
    lines += [
        "",
        f"6 settings for every arm, {seeds} final seeds; {effort(rows)}",
    ]
    return "\n".join(lines)


def _signs(rows: list[DataRun], objective: str) -> tuple[list[str], list[str]]:
    gains = {name: over_plain(rows, objective, name) for name in conditions(rows)}
    return [n for n, g in gains.items() if g.low > 0], [n for n, g in gains.items() if g.high < 0]


def _list(names: list[str]) -> str:
    return f"{len(names)} sources ({'; '.join(names)})" if names else "no source"


def to_online(rows: list[DataRun], objective: str, condition: str) -> Interval:
    """Return humanline's difference to online training, paired by seed."""
    mine = [replace(row, condition=ONLINE) for row in final(rows, objective=objective, condition=condition, arm=USUAL)]
    return gain([*mine, *final(rows, objective=objective, condition=ONLINE)], USUAL, ONLINE, condition=ONLINE)


def _foreign(rows: list[DataRun]) -> list[str]:
    return [name for name in conditions(rows) if name in MODELS]


def _reached(rows: list[DataRun]) -> list[str]:
    """Another model's data with which humanline is not shown to be below online training."""
    cells = [(objective, name) for objective in OBJECTIVES for name in _foreign(rows)]
    return [f"{o.upper()} {n}" for o, n in cells if to_online(rows, o, n).high >= 0]


def _below(rows: list[DataRun]) -> str:
    return "humanline − online: " + "; ".join(
        f"{o.upper()} {name} {to_online(rows, o, name).signed}" for o in OBJECTIVES for name in _foreign(rows)
    )


EXPERIMENT = Experiment(
    name="quality",
    title="The source of the data",
    kind=DataRun,
    run=run,
    figure=figure,
    paragraph=paragraph,
    claims=(
        Claim(
            "another model's data do not reach online training",
            "below online",
            _below,
            lambda rows: f"holds except {'; '.join(_reached(rows))}" if _reached(rows) else "holds",
            "Samples of the start or of another model do not follow the policy to where it goes.",
        ),
    ),
    protocol=Protocol(survivors=2, final=SEEDS[:8]),
    arms=[arms(loss, source) for loss in OBJECTIVES for source in SOURCES.values()],
)
