"""The width of humanline's bounds, where the policy also chooses the length: do looser bounds give longer answers?"""

from pathlib import Path

from benchmarks.paper.arms import humanline, plain, varied
from benchmarks.paper.drawing import color, line, panels, save
from benchmarks.paper.experiment import Claim, Experiment
from benchmarks.paper.intervals import Interval, bootstrap, effort, final, gain, mean_reward
from benchmarks.paper.protocol import SEEDS, Arms, Comparison, Protocol, Start
from benchmarks.paper.run_rows import Run
from humanline_fused.tiny import Loss, Policies, Setting, Sorting, Trainings

OBJECTIVES: tuple[Loss, ...] = ("dpo", "grpo")
WIDTHS = (0.1, 0.3, 1.0, 1.5, 3.0)
SYNC_EVERY = 50
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
START = Start(Policies(Sorting(filler=6)))
TIGHT, LOOSE = f"±{WIDTHS[0]:g}", f"±{WIDTHS[-1]:g}"


def arms(loss: Loss) -> Arms:
    """Return an arm for each width, and plain training; learning rates are tuned."""
    made: dict[str, Setting] = {f"±{width:g}": humanline(SYNC_EVERY, width) for width in WIDTHS}
    made["plain"] = plain(loss)
    return {name: varied(one, learning_rate=LEARNING_RATES) for name, one in made.items()}


def run(protocol: Protocol) -> list[Run]:
    found = []
    for loss in OBJECTIVES:
        mine = arms(loss)
        mine = {arm: settings[1:] for arm, settings in mine.items()} if protocol.small else mine
        found += Comparison("bounds", "", Trainings(loss), protocol, START).compare(mine)
    return found


def length(rows: list[Run], objective: str, arm: str) -> Interval:
    """Return the mean tokens of an arm's answers."""
    return bootstrap([row.length or 0.0 for row in final(rows, objective=objective, arm=arm)])


def lengthening(rows: list[Run], objective: str) -> Interval:
    """Return by how many tokens the answers of the loosest bounds are longer than those of the tightest."""
    tight, loose = (final(rows, objective=objective, arm=arm) for arm in (TIGHT, LOOSE))
    return bootstrap([(b.length or 0.0) - (a.length or 0.0) for a, b in zip(tight, loose, strict=True)])


def figure(rows: list[Run], image: Path) -> None:
    figure, axes = panels(2, 4.6)
    for loss, shade in zip(OBJECTIVES, (color("humanline"), color("online")), strict=True):
        found = [final(rows, objective=loss, arm=f"±{width:g}") for width in WIDTHS]
        line(axes[0], WIDTHS, [[row.length or 0.0 for row in group] for group in found], loss.upper(), shade)
        line(axes[1], WIDTHS, [[row.reward for row in group] for group in found], loss.upper(), shade)
        axes[0].axhline(
            length(rows, loss, "plain").mean, color=shade, ls=":", lw=1.2, label=f"{loss.upper()} plain, untuned"
        )
    for one, label in zip(axes, ("mean tokens of an answer", "expected held-out reward"), strict=True):
        one.set_xscale("log")
        one.set_xticks(WIDTHS, [f"±{width:g}" for width in WIDTHS])
        one.minorticks_off()
        one.set_xlabel("humanline's bounds, nats")
        one.set_ylabel(label)
    axes[0].set_ylim(0)
    axes[1].set_ylim(0, 1)
    axes[0].legend(frameon=False, fontsize=9)
    save(figure, image)


def paragraph(rows: list[Run]) -> str:
    answers = START.policies.task
    lines = [
        f"From {TIGHT} to {LOOSE} the answers grow by {', '.join(_growth(rows, loss) for loss in OBJECTIVES)}. "
        f"An answer needs {answers.digits + 1} tokens and may have {answers.length}; the reward ignores the others. "
        "Plain training stands here for its lengths: its β and ε are not tuned.",
        "",
        f"| | {' | '.join(arms('dpo'))} |",
        f"|---|{'---|' * (len(WIDTHS) + 1)}",
    ]
    for loss in OBJECTIVES:
        cells = [f"{length(rows, loss, arm).mean:.2f}" for arm in arms(loss)]
        lines.append(f"| {loss.upper()}, tokens | {' | '.join(cells)} |")
        cells = [str(mean_reward(rows, objective=loss, arm=arm)) for arm in arms(loss)]
        lines.append(f"| {loss.upper()}, reward | {' | '.join(cells)} |")
    seeds = len(final(rows, objective="dpo", arm="plain"))
    lines += ["", f"k = {SYNC_EVERY}, {len(LEARNING_RATES)} learning rates for every arm, {seeds} final seeds; "]
    lines[-1] += f"{effort(rows)}"
    return "\n".join(lines)


def _growth(rows: list[Run], loss: str) -> str:
    return f"{lengthening(rows, loss).signed} tokens ({loss.upper()})"


def _similar(rows: list[Run]) -> str:
    spans = [f"{loss.upper()} {gain(rows, LOOSE, TIGHT, objective=loss).signed}" for loss in OBJECTIVES]
    return "; ".join([*(_growth(rows, loss) for loss in OBJECTIVES), *(f"reward {span}" for span in spans)])


def _verdict(rows: list[Run]) -> str:
    longer = [loss.upper() for loss in OBJECTIVES if lengthening(rows, loss).low > 0]
    changed = [loss.upper() for loss in OBJECTIVES if not _zero_inside(gain(rows, LOOSE, TIGHT, objective=loss))]
    if not longer:
        return "does not hold"
    if len(longer) == len(OBJECTIVES) and not changed:
        return "holds"
    quality = f"; the reward changes for {', '.join(changed)}" if changed else ""
    return f"holds only in part: longer for {', '.join(longer)}{quality}"


def _zero_inside(interval: Interval) -> bool:
    return interval.low <= 0 <= interval.high


EXPERIMENT = Experiment(
    name="bounds",
    title="The width of the bounds and the length of the answers",
    kind=Run,
    run=run,
    figure=figure,
    paragraph=paragraph,
    claims=(
        Claim(
            "looser bounds give longer answers of similar quality",
            "longer outputs, similar win rate",
            _similar,
            _verdict,
            "The reward here does not depend on the length; a judge's preference for long answers may.",
        ),
    ),
    protocol=Protocol(survivors=2, final=SEEDS[:8]),
    arms=[arms(loss) for loss in OBJECTIVES],
)
