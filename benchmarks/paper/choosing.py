"""Advice of docs/choosing.md: each line with the experiment it rests on, and a test of it on the results."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.paper import beyond, budget, cadence, equal
from benchmarks.paper.ablation import BOTH_ONLINE, OBJECTIVES, best
from benchmarks.paper.intervals import Interval, final, gain, mean_reward
from benchmarks.tables import Line

Rows = list[Any]


@dataclass(frozen=True)
class Advice:
    """One line of the table.

    Attributes:
        setting: what is chosen.
        text: the advice.
        experiment: name of the experiment it rests on.
        evidence: our figure, from the rows.
        holds: True if the rows support the advice.
    """

    setting: str
    text: str
    experiment: str
    evidence: Callable[[Rows], str]
    holds: Callable[[Rows], bool]

    def line(self, rows: Rows, link: str) -> Line:
        """Return the line of the table."""
        return {"choose": self.setting, "advice": self.text, "evidence": f"{self.evidence(rows)} ({link})"}


def _rate(rows: Rows, objective: str, arm: str) -> float:
    return final(rows, objective=objective, arm=arm)[0].learning_rate


def _rates(rows: Rows) -> str:
    return "best learning rates: " + "; ".join(
        f"{o.upper()} plain {_rate(rows, o, 'plain'):g}, clamp {_rate(rows, o, 'clamp'):g}, "
        f"{best(rows, o, 'both')} {_rate(rows, o, best(rows, o, 'both')):g}"
        for o in OBJECTIVES
    )


def _width(rows: Rows, objective: str, k: int | None) -> float:
    """Return the best width of a cadence."""
    found = {width: value for (other, width), value in budget.grid(rows, objective).items() if other == k}
    return max(found, key=found.__getitem__)


def _widths(rows: Rows) -> str:
    def of(objective: str) -> str:
        return ", ".join(
            f"{'never' if k is None else f'k = {k}'} ±{_width(rows, objective, k):g}" for k in budget.CADENCES
        )

    return "best widths, on the seeds they are chosen with: " + "; ".join(
        f"{o.upper()}: {of(o)}" for o in budget.OBJECTIVES
    )


def _narrower_than_the_paper(rows: Rows) -> bool:
    """Return True if the best width is 0.75 without syncs, and with syncs always narrower."""
    widths = {o: [_width(rows, o, k) for k in budget.CADENCES] for o in budget.OBJECTIVES}
    return all(found[0] == 0.75 > max(found[1:]) for found in widths.values())


def _cadences(rows: Rows) -> str:
    def of(objective: str, width: float) -> str:
        k = cadence.best_cadence(rows, objective, width)
        first = gain(rows, cadence.name(1, width), "plain", objective=objective).mean
        return f"±{width:g}: k = 1 {first:+.2f}, k = {k} {_gain(rows, objective, k, width):+.2f}"

    lines = (f"{o.upper()} {'; '.join(of(o, w) for w in cadence.WIDTHS)}" for o in cadence.OBJECTIVES)
    return "gain over plain at β .1, ε .2: " + "; ".join(lines)


def _late_is_best(rows: Rows, objective: str, width: float) -> bool:
    """Return True if a k above half of the run is better than every smaller one, beyond the seeds' noise."""
    best, steps = cadence.best_cadence(rows, objective, width), cadence.PROTOCOL.steps
    late, *smaller = (cadence.name(k, width) for k in (best, *(k for k in cadence.CADENCES if k < best)))
    return 2 * best > steps and all(gain(rows, late, arm, objective=objective).low > 0 for arm in smaller)


def _gain(rows: Rows, objective: str, k: int, width: float) -> float:
    return gain(rows, cadence.name(k, width), "plain", objective=objective).mean


def _beta(rows: Rows) -> str:
    chosen = ((o, equal.chosen(rows, o, "plain")) for o in equal.OBJECTIVES)
    return "plain's best of 48: " + "; ".join(f"{o.upper()} {setting}" for o, setting in chosen)


def _losses(rows: Rows) -> str:
    return "humanline − plain, both tuned: " + "; ".join(
        f"{o.upper()} {gain(rows, 'humanline', 'plain', objective=o).signed}" for o in equal.OBJECTIVES
    )


def _shares(rows: Rows) -> str:
    return "settings of 48 that reach .8 (plain with 12 β or ε, humanline with 4 widths and 3 k): " + "; ".join(
        f"{o.upper()} {equal.above(rows, o, 'plain', 0.8)}, {equal.above(rows, o, 'humanline', 0.8)}"
        for o in equal.OBJECTIVES
    )


def _more(text: str) -> int:
    return int(text.split()[0])


def _clamp_alone(rows: Rows) -> str:
    return "clamp alone − clamp and sync, both tuned: " + "; ".join(
        f"{o.upper()} {gain(rows, 'clamp', 'humanline', objective=o).signed}" for o in OBJECTIVES
    )


def _llama(rows: Rows) -> str:
    return "humanline − clamp alone: " + "; ".join(
        f"{o.upper()} {gain(rows, 'humanline', 'clamp', objective=o).signed}" for o in OBJECTIVES
    )


def _online(rows: Rows) -> str:
    return "online with clamp and sync − online: " + "; ".join(
        f"{o.upper()} {gain(rows, BOTH_ONLINE, 'online', objective=o).signed}" for o in OBJECTIVES
    )


def _over_plain(rows: Rows, condition: str) -> Interval:
    return gain(rows, "humanline", "plain", condition=condition)


def _noise(rows: Rows) -> str:
    return "humanline − plain, share of inverted rewards: " + "; ".join(
        f"{share:g} {_over_plain(rows, condition).signed}" for share, condition in beyond.values("reward noise").items()
    )


def _norms(rows: Rows) -> str:
    def of(condition: str) -> str:
        return ", ".join(
            f"{mean_reward(rows, arm=arm, condition=condition).mean:.3f}" for arm in ("plain", "humanline")
        )

    norms = beyond.values("max_grad_norm").items()
    return "reward of plain, humanline: " + "; ".join(f"norm {norm:g}: {of(condition)}" for norm, condition in norms)


ADVICE = (
    Advice(
        "the loss",
        "Try humanline with DPO first, then GRPO. KTO has a saturating loss of its own: tune it plain.",
        "equal",
        _losses,
        lambda rows: (
            gain(rows, "humanline", "plain", objective="dpo").low > 0
            and gain(rows, "humanline", "plain", objective="kto").mean
            < gain(rows, "humanline", "plain", objective="grpo").mean
        ),
    ),
    Advice(
        "the loss",
        "Noisy preferences speak for humanline DPO: they cost plain DPO more.",
        "beyond",
        _noise,
        lambda rows: _over_plain(rows, "reward noise 0.2").low > _over_plain(rows, "usual 0").high,
    ),
    Advice(
        "max_grad_norm",
        "Tune it too: a small one helped humanline and not plain.",
        "beyond",
        _norms,
        lambda rows: (
            mean_reward(rows, arm="humanline", condition="max_grad_norm 0.1").low
            > mean_reward(rows, arm="humanline", condition="usual 0").high
            and mean_reward(rows, arm="plain", condition="max_grad_norm 0.1").mean
            < mean_reward(rows, arm="plain", condition="usual 0").mean
        ),
    ),
    Advice(
        "β, ε",
        "Tune them for the plain loss: its best value may be far from the usual .1 (ε .2).",
        "equal",
        _beta,
        lambda rows: final(rows, objective="dpo", arm="plain")[0].beta > 0.1,
    ),
    Advice(
        "learning rate",
        "Tune it again after every change of clamp or k, over at least a factor of ten.",
        "ablation",
        _rates,
        lambda rows: any(_rate(rows, o, "plain") != _rate(rows, o, best(rows, o, "both")) for o in OBJECTIVES),
    ),
    Advice(
        "learning rate",
        "If you can afford few settings, humanline DPO forgives a wrong one more often than plain DPO. A count depends "
        "on the grid: plain's β spans three decades.",
        "equal",
        _shares,
        lambda rows: _more(equal.above(rows, "dpo", "humanline", 0.8)) > _more(equal.above(rows, "dpo", "plain", 0.8)),
    ),
    Advice(
        "clamp, sync",
        "Try the clamp alone first ([how](#the-clamp-alone)). With the tiny policies the seeds do not show that a sync "
        "adds to it.",
        "frozen",
        _clamp_alone,
        lambda rows: all(gain(rows, "humanline", "clamp", objective=o).low <= 0 for o in OBJECTIVES),
    ),
    Advice(
        "clamp, sync",
        "A transformer may differ: on the small Llama a sync added to the clamp alone with GRPO and KTO, though both "
        "stayed below tuned plain training.",
        "llama",
        _llama,
        lambda rows: all(
            gain(rows, "humanline", "clamp", objective=o).low > 0
            and gain(rows, "humanline", "plain", objective=o).high < 0
            for o in ("grpo", "kto")
        ),
    ),
    Advice(
        "width",
        "Try bounds narrower than the paper's ±1.5: without syncs ±0.75, with syncs narrower still. The width matters "
        "less than k.",
        "budget",
        _widths,
        lambda rows: (
            _narrower_than_the_paper(rows)
            and all(budget.explained(rows, o, "width") < budget.explained(rows, o, "k") for o in budget.OBJECTIVES)
        ),
    ),
    Advice(
        "k",
        "If you sync, begin with a k of more than half of the run's steps, so that the reference is renewed once. "
        "Every smaller k was worse here. The default k = 1 is the paper's for 8B models. It is a different method: a "
        "linear contrast without a trust region.",
        "sync",
        _cadences,
        lambda rows: all(_late_is_best(rows, o, w) for o in cadence.OBJECTIVES for w in cadence.WIDTHS),
    ),
    Advice(
        "online",
        "With fresh samples at every step leave clamp and sync off.",
        "ablation",
        _online,
        lambda rows: all(gain(rows, BOTH_ONLINE, "online", objective=o).low <= 0 for o in OBJECTIVES),
    ),
)
