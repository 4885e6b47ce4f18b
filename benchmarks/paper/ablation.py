"""Which of the two edits gives the gain: clamp, sync, or both? (the paper's ablation)"""

from pathlib import Path

from benchmarks.paper.arms import PAPER_WIDTH, clamped, humanline, online, plain, synced, varied
from benchmarks.paper.drawing import color, panels, save
from benchmarks.paper.experiment import Claim, Experiment
from benchmarks.paper.intervals import best_of_tuning, effort, final, gain, mean_reward
from benchmarks.paper.protocol import Arms, Comparison, Protocol
from benchmarks.paper.run_rows import Run
from humanline_fused.tiny import Loss, Setting, Trainings

OBJECTIVES: tuple[Loss, ...] = ("dpo", "kto", "grpo")
LEARNING_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
BETAS, EPSILONS = (0.1, 1.0), (0.2, 1.5)
CADENCES = (1, 16, 50)
BOTH_ONLINE = "online, both, k = 16"
NONE = "no difference that the seeds can show"


def tuned(setting: Setting, loss: Loss) -> list[Setting]:
    """Return 12 settings: two β (GRPO: ε) times six learning rates."""
    if loss == "grpo":
        return varied(setting, epsilon=EPSILONS, learning_rate=LEARNING_RATES)
    return varied(setting, beta=BETAS, learning_rate=LEARNING_RATES)


def arms(loss: Loss) -> Arms:
    """Return the arms of an objective, all with the paper's bounds."""
    settings = {"plain": plain(loss), "clamp": clamped()}
    settings |= {f"sync, k = {k}": synced(k) for k in CADENCES}
    settings |= {f"both, k = {k}": humanline(k) for k in CADENCES}
    settings |= {"online": online(plain(loss)), BOTH_ONLINE: online(humanline(16))}
    return {name: tuned(setting, loss) for name, setting in settings.items()}


def run(protocol: Protocol) -> list[Run]:
    found = []
    for loss in OBJECTIVES:
        mine = arms(loss)
        mine = {arm: settings[3:12:6] for arm, settings in mine.items()} if protocol.small else mine
        found += Comparison("ablation", "", Trainings(loss), protocol).compare(mine)
    return found


def figure(rows: list[Run], image: Path) -> None:
    figure, axes = panels(len(OBJECTIVES), height=3.8)
    names = list(arms("dpo"))
    for one, objective in zip(axes, OBJECTIVES, strict=True):
        for place, name in enumerate(names):
            interval, kind = mean_reward(rows, objective=objective, arm=name), name.split(",")[0]
            shade = color("humanline" if kind == "both" else kind)
            one.plot([interval.low, interval.high], [place, place], color=shade, lw=5, alpha=0.35)
            one.plot([interval.mean], [place], "o", color=shade)
        one.set_yticks(range(len(names)), names if one is axes[0] else [""] * len(names))
        one.invert_yaxis()
        one.set_xlim(0.3, 1)
        one.set_title(objective.upper(), loc="left")
        one.set_xlabel("held-out reward, 95 % interval")
    save(figure, image)


def best(rows: list[Run], objective: str, kind: str) -> str:
    """Return the best arm of ``sync`` or ``both`` in the tuning."""
    return best_of_tuning(rows, [name for name in arms("dpo") if name.startswith(kind)], objective=objective)


def paragraph(rows: list[Run]) -> str:
    names = list(arms("dpo"))
    lines = ["| | DPO | KTO | GRPO |", "|---|---|---|---|"]
    for name in names:
        cells = []
        for objective in OBJECTIVES:
            row = final(rows, objective=objective, arm=name)[0]
            cells.append(f"{mean_reward(rows, objective=objective, arm=name)} (lr {row.learning_rate:g})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seeds = len({row.seed for row in rows if row.phase == "final"})
    lines += [
        "",
        f"Bounds ±{PAPER_WIDTH}; {len(tuned(plain('dpo'), 'dpo'))} settings for every arm, {seeds} final seeds; "
        f"{effort(rows)} The cadence of an arm is part of its name, so it is not tuned; the table of claims has the "
        f"cadence that was best in the tuning, so *sync* and *both* had {len(CADENCES)} times as many settings there "
        "as *plain* and *clamp*.",
    ]
    return "\n".join(lines)


def _gains(rows: list[Run]) -> str:
    cells = []
    for objective in OBJECTIVES:
        sync, both = best(rows, objective, "sync"), best(rows, objective, "both")
        parts = [("sync", sync), ("clamp", "clamp"), ("both", both)]
        gains = ", ".join(f"{word} {gain(rows, arm, 'plain', objective=objective).signed}" for word, arm in parts)
        cells.append(f"{objective.upper()}: {gains}")
    return "; ".join(cells)


def _sync_gives_most(rows: list[Run]) -> str:
    holding = [o.upper() for o in OBJECTIVES if _sync_leads(rows, o)]
    if len(holding) == len(OBJECTIVES):
        return "holds"
    return f"holds only for {', '.join(holding)}" if holding else "does not hold"


def _sync_leads(rows: list[Run], objective: str) -> bool:
    """Return whether all parts of the claim hold: the sync gains most, the clamp nothing, both are like online."""
    sync, both = best(rows, objective, "sync"), best(rows, objective, "both")
    over_plain, clamp = (gain(rows, arm, "plain", objective=objective) for arm in (sync, "clamp"))
    leads = over_plain.low > 0 and over_plain.mean > gain(rows, both, "plain", objective=objective).mean / 2
    return leads and clamp.low <= 0 and gain(rows, both, "online", objective=objective).high >= 0


def _online(rows: list[Run]) -> str:
    return "; ".join(f"{o.upper()} {gain(rows, BOTH_ONLINE, 'online', objective=o).signed}" for o in OBJECTIVES)


def _slightly_better(rows: list[Run]) -> str:
    gains = {o.upper(): gain(rows, BOTH_ONLINE, "online", objective=o) for o in OBJECTIVES}
    better = [name for name, interval in gains.items() if interval.low > 0]
    worse = [name for name, interval in gains.items() if interval.high < 0]
    if worse:
        return f"does not hold: worse for {', '.join(worse)}"
    return f"holds only for {', '.join(better)}" if better and len(better) < len(gains) else "holds" if better else NONE


def _rates(rows: list[Run]) -> str:
    cells = []
    for objective in OBJECTIVES:
        rates = {
            name: final(rows, objective=objective, arm=name)[0].learning_rate for name in _compared(rows, objective)
        }
        cells.append(f"{objective.upper()}: {', '.join(f'{name} {rate:g}' for name, rate in rates.items())}")
    return "; ".join(cells)


def _compared(rows: list[Run], objective: str) -> list[str]:
    return ["plain", "clamp", best(rows, objective, "sync"), best(rows, objective, "both")]


def _retuned(rows: list[Run]) -> str:
    """Compare each arm's best learning rate with plain's. The grid is coarse: its values differ by a factor of 3."""
    factors = {}
    for objective in OBJECTIVES:
        usual, *others = (
            final(rows, objective=objective, arm=name)[0].learning_rate for name in _compared(rows, objective)
        )
        factors[objective.upper()] = [rate / usual for rate in others]
    moved = {name: f for name, f in factors.items() if max(f) > 1.5 or min(f) < 1 / 1.5}
    if not moved:
        return "does not hold"
    ranges = ", ".join(f"{name} ({min(f):.3g}x to {max(f):.3g}x of plain's)" for name, f in moved.items())
    return f"holds {'' if len(moved) == len(factors) else 'only '}for {ranges}"


EXPERIMENT = Experiment(
    name="ablation",
    title="Clamp, sync, or both",
    kind=Run,
    run=run,
    figure=figure,
    paragraph=paragraph,
    claims=(
        Claim(
            "the sync alone gives most of the gain, the clamp alone is like offline, both reach parity",
            "ablation of section 5",
            _gains,
            _sync_gives_most,
            "A sync without a trust region of the right width lets the policy drift away from its data; DPO has no "
            "other trust region than the clamp, GRPO has PPO's clip.",
        ),
        Claim(
            "online + humanline is only slightly better than online",
            "figure of section 5",
            _online,
            _slightly_better,
            "Fresh samples already keep reference and policy together.",
        ),
        Claim(
            "with clamp and sync the learning rate must be tuned again, by 0.1x to 4x",
            "0.1x to 4x",
            _rates,
            _retuned,
            "The clamp stops gradients of tokens that moved far enough, so larger steps do less harm; a sync lets the "
            "policy move on, so smaller ones suffice.",
        ),
    ),
    arms=[arms(loss) for loss in OBJECTIVES],
)
