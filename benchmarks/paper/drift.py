"""Does the sign "the reference has left the data" fire before the reward falls, and on nothing else?

The rule was chosen on other seeds. Here it is only counted.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Literal, get_args

from benchmarks.paper.arms import PAPER_WIDTH, humanline, online, plain, varied
from benchmarks.paper.drawing import OTHER, color, panels, save
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.intervals import cpu_seconds
from benchmarks.paper.protocol import Comparison, Protocol
from benchmarks.paper.run_rows import Run, rows_of
from humanline_fused.perception.diagnostics import STANDARD_ERRORS, SURPLUS_RISE, WINDOW, policy_left, reference_left
from humanline_fused.tiny import Loss, Setting, Trainings

OBJECTIVES: tuple[Loss, ...] = ("grpo", "dpo", "kto")
CADENCES = (1, 4, 16, 50)
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
EVERY = 5
"""Steps between two evaluations, and of one point of the stored surplus."""

SMALLEST_GAIN = 0.02
"""A smaller gain of reward is taken for none: a run without one cannot lose a tenth of it."""

LOST = 0.1
"""Share of its gain that a run loses when it drifts."""

PROTOCOL = Protocol(first=(), second=(), final=tuple(range(1000, 1010)))

Outcome = Literal["in time", "late", "never", "early", "silent"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class DriftRun(Run):
    """A training with the course of its surplus.

    Attributes:
        fired: optimizer step after which the sign fires, with a log line for every step; None: never.
        lost: step of the first evaluation after the best one at which a tenth of the gain is lost; None: none.
        surpluses: surplus surprisal under the reference, nats per token, means of ``EVERY`` steps.
    """

    fired: int | None = None
    lost: int | None = None
    surpluses: tuple[float, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """When the sign fired, before the loss of a tenth of the gain or after it; without such a loss, if at all."""
        if self.lost is None:
            return "silent" if self.fired is None else "early"
        if self.fired is None:
            return "never"
        return "in time" if self.fired <= self.lost else "late"


def fires_at(surplus: Sequence[float], drift: Sequence[float] = (), k: int = 1) -> int | None:
    """Return the number of log lines, one for each step, after which the sign fires, or None.

    Args:
        surplus, drift: of the steps; no drift: the reference is not synced.
        k: steps between syncs.

    >>> fires_at([0.0] * 12 + [0.3] * 4), fires_at([0.0] * 16)
    (14, None)
    """
    lines = range(2 * WINDOW, len(surplus) + 1)
    return next((n for n in lines if policy_left(drift[:n], n // k) or reference_left(surplus[:n])), None)


def drift_of(logp: Sequence[float], ref_logp: Sequence[float], k: int) -> list[float]:
    """Return the drift of a run's steps as the trainer logs it: drops below the reference, added up over the syncs.

    >>> drift_of([-1.0, -2.0, -2.5], [-1.0, -1.5, -1.75], k=1)
    [0.0, 0.5, 1.25]
    """
    drifts, at_sync = [], 0.0
    for step, (now, reference) in enumerate(zip(logp, ref_logp, strict=True)):
        drifts.append(at_sync + reference - now)
        if step % k == 0:
            at_sync = drifts[-1]
    return drifts


def lost_at(steps: Sequence[int], rewards: Sequence[float]) -> int | None:
    """Return the first step after the best one at which the reward has lost a tenth of its gain, or None.

    >>> lost_at([0, 5, 10, 15], [0.4, 0.6, 0.59, 0.57]), lost_at([0, 5, 10], [0.4, 0.3, 0.2])
    (15, None)
    """
    best = max(range(len(rewards)), key=rewards.__getitem__)
    gain = rewards[best] - rewards[0]
    if gain < SMALLEST_GAIN:
        return None
    later = zip(steps[best:], rewards[best:], strict=True)
    return next((step for step, reward in later if reward < rewards[best] - LOST * gain), None)


def arms(loss: Loss) -> dict[str, list[Setting]]:
    """Return plain, online and a synced arm for each cadence, at three learning rates."""
    made = {"plain": plain(loss), "online": online(plain(loss))} | {f"k = {k}": humanline(k) for k in CADENCES}
    return {name: varied(setting, learning_rate=LEARNING_RATES) for name, setting in made.items()}


def run(protocol: Protocol) -> list[DriftRun]:
    found = []
    for loss in OBJECTIVES:
        comparison = Comparison("drift", "", Trainings(loss), protocol)
        for arm, settings in arms(loss).items():
            if protocol.small and arm not in ("plain", "online", "k = 1"):
                continue
            settings = settings[1:2] if protocol.small else settings
            curves, seconds = comparison.curves(settings, protocol.final, evaluate_every=EVERY)
            names = {"experiment": "drift", "condition": "", "phase": "final", "arm": arm}
            rows = rows_of(curves, seconds, objective=loss, **names)
            series = (curves.surplus, curves.logp, curves.ref_logp)
            runs = zip(*(values.flatten(0, 1).tolist() for values in series), strict=True)
            found += [_with_surplus(row, *run) for row, run in zip(rows, runs, strict=True)]
    return found


def _with_surplus(row: Run, surplus: list[float], logp: list[float], ref_logp: list[float]) -> DriftRun:
    """Return the row with its surplus, and when the sign fires; the drift is judged where the reference is synced."""
    means = tuple(round(fmean(surplus[at : at + EVERY]), 4) for at in range(0, len(surplus), EVERY))
    k = row.sync_every
    fired = fires_at(surplus, drift_of(logp, ref_logp, k), k) if k else fires_at(surplus)
    return DriftRun(**asdict(row), fired=fired, lost=lost_at(row.steps, row.rewards), surpluses=means)


def counted(rows: Sequence[DriftRun], *outcomes: Outcome, **fixed: object) -> int:
    """Return the number of rows with an outcome, among those with the given fields."""
    mine = (row for row in rows if all(getattr(row, name) == value for name, value in fixed.items()))
    return sum(row.outcome in outcomes for row in mine)


def paragraph(rows: list[DriftRun]) -> str:
    synced = [row for row in rows if row.sync_every]
    seeds = len({row.seed for row in rows})
    late, never, early = counted(synced, "late"), counted(synced, "never"), counted(synced, "early")
    drifting, kept = counted(synced, "in time", "late", "never"), counted(synced, "early", "silent")
    others = [row for row in rows if not row.sync_every]
    fixed = [row for row in others if row.arm == "plain"]
    fresh = [(o, [r for r in others if r.arm == "online" and r.objective == o]) for o in OBJECTIVES]
    lines = [
        f"- Of {kept} synced runs that never lost a tenth of their gain, the sign fired on {early}: it says that "
        "Assumption 4.1 no longer holds, not that the reward must fall. With a large k it often comes long before a "
        "loss, or there is none.",
        f"- Of {drifting} synced runs that lost a tenth of their gain, it fired too late on {late}, never on {never}, "
        f"in time on {counted(synced, 'in time')}{_lead(synced)}.",
        f"- On plain offline runs it {_says(fixed)}, though {sum(row.lost is not None for row in fixed)} of them lost "
        "a tenth of their gain too: their reference is frozen, so a rising surplus is not the only way to lose.",
        "- On online runs it "
        + ", ".join(f"{_says(mine)} ({objective.upper()})" for objective, mine in fresh)
        + ". Online DPO and KTO here keep the initial policy as the reference while the data move, and they train on "
        "selected samples; the trainer judges neither a frozen reference nor rounds.",
        "",
        "| | k | lost a tenth: in time | late | never | no loss: fired | silent | surplus where it was lost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for objective in OBJECTIVES:
        for k in sorted({row.sync_every for row in synced if row.sync_every}):
            mine = [row for row in synced if row.objective == objective and row.sync_every == k]
            counts = [str(counted(mine, one)) for one in OUTCOMES]
            lines.append(f"| {objective.upper()} | {k} | {' | '.join(counts)} | {_at_loss(mine)} |")
    lines += [
        "",
        f"Bounds ±{PAPER_WIDTH}, learning rates {', '.join(f'{rate:g}' for rate in LEARNING_RATES)}, {seeds} seeds "
        f"each. The sign: the drop of the data's log-prob under the policy (synced runs), or the rise of the mean "
        f"surplus under the reference from the first {WINDOW} log lines to the last {WINDOW}, is above {SURPLUS_RISE} "
        f"nats per token and {STANDARD_ERRORS} standard errors; a log line for every step. Surplus: median, and the "
        f"range that holds four fifths of the runs. {len(rows)} runs, {cpu_seconds(rows):.0f} CPU seconds.",
    ]
    return "\n".join(lines)


def _says(rows: Sequence[DriftRun]) -> str:
    fired = sum(row.fired is not None for row in rows)
    return f"fires on {fired} of {len(rows)}" if fired else f"stays silent on all {len(rows)}"


def _lead(rows: Sequence[DriftRun]) -> str:
    """Return how long before the loss the sign fired."""
    steps = sorted(row.lost - row.fired for row in rows if row.outcome == "in time" and row.lost and row.fired)
    return f", {steps[0]} to {steps[-1]} steps before (median {median(steps):g})" if steps else ""


def _at_loss(rows: Sequence[DriftRun]) -> str:
    """Return the surplus just before a tenth of the gain was lost."""
    values = sorted(row.surpluses[max(0, row.lost // EVERY - 1)] for row in rows if row.lost is not None)
    if not values:
        return "-"
    cut = len(values) // 10
    return f"{median(values):.2f} ({values[cut]:.2f} to {values[-1 - cut]:.2f})"


def figure(rows: list[DriftRun], image: Path) -> None:
    figure, axes = panels(len(OBJECTIVES), width=4.4, height=3.8)
    rate = LEARNING_RATES[1]
    names = list(dict.fromkeys(row.arm for row in rows))
    ticks = (0, 0.1, 1, 10)
    for one, objective in zip(axes, OBJECTIVES, strict=True):
        for number, arm in enumerate(names):
            mine = [r for r in rows if r.objective == objective and r.arm == arm and r.learning_rate == rate]
            shade = color(arm) if arm in ("plain", "online") else OTHER[number % len(OTHER)]
            xs = [fmean(values) for values in zip(*(row.surpluses for row in mine), strict=True)]
            ys = [fmean(values) for values in zip(*(row.rewards[1:] for row in mine), strict=True)]
            one.plot(xs[::4], ys[::4], "o-", ms=3, lw=1.2, color=shade, label=arm)
            if fired := [row.fired for row in mine if row.fired is not None]:
                place = min(round(median(fired)) // EVERY, len(xs) - 1)
                one.plot(xs[place], ys[place], "*", ms=13, color=shade, markeredgecolor="black")
        one.axvspan(SURPLUS_RISE, 1e3, color="black", alpha=0.06, lw=0)
        one.set_xscale("symlog", linthresh=0.05)
        one.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        one.set_xlim(-0.04, max(0.2, 1.3 * max(max(row.surpluses) for row in rows if row.learning_rate == rate)))
        one.set_ylim(0, 1)
        one.set_title(f"{objective.upper()}, learning rate {rate:g}", loc="left")
        one.set_xlabel("surplus under the reference, nats per token")
    axes[0].set_ylabel("held-out reward (star: the sign fires)")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    save(figure, image)


EXPERIMENT = Experiment(
    name="drift",
    title="When the reference leaves the data",
    kind=DriftRun,
    run=run,
    figure=figure,
    paragraph=paragraph,
    protocol=PROTOCOL,
    arms=[
        [arms(loss) for loss in OBJECTIVES],
        "drift added up over the syncs, or surplus",
        STANDARD_ERRORS,
        SURPLUS_RISE,
        WINDOW,
        EVERY,
        SMALLEST_GAIN,
        LOST,
    ],
)
