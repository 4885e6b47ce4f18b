"""The trainer itself on a small Llama: plain, clamp only, humanline and online, tuned alike.

Every arm has eight settings: four learning rates, times two β (GRPO: ε) for plain and online, two widths for the clamp,
two pairs of width and k for humanline. The values were chosen with seed 100, which no part of the comparison uses. The
fourth learning rate of each arm came after a comparison with three, in which some arms had chosen an end of theirs.
"""

import gc
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.machine import machine, source_hash
from benchmarks.paper.drawing import color, panels, save
from benchmarks.paper.experiment import Claim, Experiment
from benchmarks.paper.intervals import cpu_seconds, final, gain, mean_reward, wins
from benchmarks.paper.letters import SEQUENCES, Letters, Size, make
from benchmarks.paper.protocol import SEEDS, Protocol, protocol_hash
from benchmarks.paper.run_rows import Run
from benchmarks.paper.unfinished import Unfinished
from benchmarks.results import RESULTS
from humanline_fused.tiny import Loss, Setting

OBJECTIVES: tuple[Loss, ...] = ("dpo", "kto", "grpo")
ARMS = ("plain", "clamp", "humanline", "online")
SIZE = Size()
PROTOCOL = Protocol(first=(900, 901), second=(902, 903), survivors=2, final=SEEDS[:8], steps=SIZE.steps)
QUICK = Size(hidden=16, layers=1, letters=(2, 3), start_steps=0, steps=2, demonstrations=0, asked=64, heldout=16)
QUICK_OBJECTIVE = "grpo"  # the others cannot train online on samples that are all wrong
EVALUATE_EVERY = 10

RATES = (3e-5, 1e-4, 3e-4, 1e-3)

REGULARISATION: dict[Loss, list[dict[str, Any]]] = {
    "dpo": [{"beta": 1.0}, {"beta": 3.0}],
    "kto": [{"beta": 0.3}, {"beta": 1.0}],
    "grpo": [{"epsilon": 0.2}, {"epsilon": 10.0}],
}
"""What plain and online tune besides the learning rate; the clamped arms keep β = .1 and ε = .2."""


def bounds(width: float) -> dict[str, float]:
    """Return humanline's bounds ±width, nats."""
    return {"log_epsilon_P": -width, "log_epsilon_R": width}


def arms(objective: Loss) -> dict[str, list[Setting]]:
    """Return the settings that each arm of an objective is tuned over."""
    plain = REGULARISATION[objective]
    # Online GRPO's reference is the policy of the step before, nearly the one that wrote the samples.
    fresh = {"resample_every": 1, "sync_every": 1 if objective == "grpo" else None}
    others: dict[str, list[dict[str, Any]]] = {
        "plain": plain,
        "clamp": [bounds(0.5), bounds(1.0)],
        "humanline": [bounds(0.2) | {"sync_every": 14}, bounds(0.5) | {"sync_every": 20}],
        "online": [one | fresh for one in plain],
    }
    return {arm: [Setting(arm, rate, **one) for rate, one in itertools.product(RATES, others[arm])] for arm in ARMS}


def fields_of(setting: Setting, objective: Loss) -> dict[str, Any]:
    """Return a setting as fields of :class:`humanline_fused.training.HumanlineConfig`."""
    online, synced = setting.resample_every is not None, setting.sync_every is not None
    clamped = math.isfinite(setting.log_epsilon_R)
    reference = ("copy" if online else "lookahead") if synced else "frozen"
    given: dict[str, Any] = {"learning_rate": setting.learning_rate, "clamp": clamped, "reference": reference}
    given |= {"rollout_every": setting.resample_every} if online else {}
    given |= {"sync_every": setting.sync_every} if synced else {}
    given |= bounds(setting.log_epsilon_R) if clamped else {}
    if objective == "grpo":
        return given | {"epsilon": min(1.0, setting.epsilon), "epsilon_high": setting.epsilon}
    return given | {"beta": setting.beta}


Key = tuple[Loss, str, Setting]
"""An objective, an arm and a setting."""


def key_of(row: Run) -> Key:
    """Return what a row was trained with."""
    names = ("learning_rate", "beta", "epsilon", "sync_every", "resample_every")
    setting = Setting(row.arm, **bounds(row.width), **{name: getattr(row, name) for name in names})
    return row.objective, row.arm, setting  # pyright: ignore[reportReturnType]


@dataclass
class Trainings:
    """All trainings of the experiment, one after another.

    Attributes:
        protocol: the rules.
        size: of the model and the runs.
        kept: the rows so far.
    """

    protocol: Protocol
    size: Size
    kept: Unfinished[Run]

    def compare(self, settings: dict[tuple[Loss, str], list[Setting]]) -> None:
        """Tune every objective's arms in two rounds, and train the chosen settings with the final seeds.

        Args:
            settings: by objective and arm.
        """
        rules, seen = self.protocol, set[int]()
        rounds = (("tuning", rules.first, rules.survivors), ("tuning", rules.second, 1), ("final", rules.final, 1))
        for phase, seeds, survivors in rounds:
            keys = [(*names, one) for names, tried in settings.items() for one in tried]
            for seed in seeds:
                self._train(phase, seed, keys)
            seen |= {*seeds}
            settings = {names: self._best(names, tried, survivors, seen) for names, tried in settings.items()}

    def _train(self, phase: str, seed: int, keys: Sequence[Key]) -> None:
        done = {key_of(row) for row in self.kept.rows if (row.phase, row.seed) == (phase, seed)}
        missing = [key for key in keys if key not in done]
        if not missing:
            return
        letters = make(self.size, seed)
        print(f"llama: {phase}, seed {seed}, {len(missing)} runs", file=sys.stderr)
        for key in missing:
            self.kept.add([row_of(letters, phase, key)])

    def _best(self, names: tuple[Loss, str], tried: Sequence[Setting], survivors: int, seen: set[int]) -> list[Setting]:
        """Return the settings with the highest mean reward over the seeds of the rounds so far."""
        if len(tried) <= survivors:
            return list(tried)
        rewards: dict[Key, list[float]] = {}
        for row in self.kept.rows:
            if row.seed in seen and (row.objective, row.arm) == names:
                rewards.setdefault(key_of(row), []).append(row.reward)
        return sorted(tried, key=lambda one: fmean(rewards[(*names, one)]), reverse=True)[:survivors]


def row_of(letters: Letters, phase: str, key: Key) -> Run:
    """Train once. Final runs are evaluated on the way."""
    objective, arm, setting = key
    every = EVALUATE_EVERY if phase == "final" else letters.size.steps
    trained = letters.train(objective, fields_of(setting, objective), evaluate_every=every)
    rewards = tuple(round(value, 5) for value in (letters.start, *trained.rewards))
    return Run(
        experiment="llama",
        phase=phase,
        condition="",
        arm=arm,
        objective=objective,
        seed=letters.seed,
        learning_rate=setting.learning_rate,
        beta=setting.beta,
        epsilon=setting.epsilon,
        width=setting.log_epsilon_R,
        sync_every=setting.sync_every,
        resample_every=setting.resample_every,
        start=rewards[0],
        reward=rewards[-1],
        best=max(rewards),
        unclamped=round(trained.unclamped, 5),
        cpu_seconds=round(trained.cpu_seconds, 3),
        steps=(0, *trained.steps),
        rewards=rewards,
    )


def run(protocol: Protocol) -> list[Run]:
    """Return the rows of all trainings. Those of an interrupted command are taken up."""
    settings: dict[tuple[Loss, str], list[Setting]]
    settings = {(loss, arm): tried for loss in OBJECTIVES for arm, tried in arms(loss).items()}
    if protocol.small:
        settings = {names: tried[:1] for names, tried in settings.items() if names[0] == QUICK_OBJECTIVE}
        protocol = replace(protocol, first=(), second=())
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # accelerate collects garbage at the start of every training, and would search all imported modules
    facts = {"machine": machine(torch.device("cpu")), "torch": torch.__version__, "source": source_hash()}
    facts["protocol"] = protocol_hash(protocol, settings)
    kept = Unfinished(None if protocol.small else RESULTS / "paper/llama.unfinished.csv", Run, facts)
    Trainings(protocol, QUICK if protocol.small else replace(SIZE, steps=protocol.steps), kept).compare(settings)
    return kept.finish()


def sweep(rows: Sequence[Run], objective: str, arm: str) -> list[float]:
    """Return the mean reward of each of an arm's settings over the seeds that all of them were tuned with, sorted."""
    mine = [row for row in rows if (row.phase, row.objective, row.arm) == ("tuning", objective, arm)]
    tried = list(dict.fromkeys(row.setting for row in mine))
    seeds = {row.seed for row in mine}
    shared = [seed for seed in seeds if sum(row.seed == seed for row in mine) == len(tried)]
    means = (fmean(row.reward for row in mine if row.setting == one and row.seed in shared) for one in tried)
    return sorted(means)


def chosen(rows: Sequence[Run], objective: str, arm: str) -> str:
    """Return an arm's chosen setting in words."""
    row = final(rows, objective=objective, arm=arm)[0]
    words = [f"lr {row.learning_rate:g}"]
    if math.isfinite(row.width):
        words += [f"±{row.width:g}"] + ([f"k = {row.sync_every}"] if row.sync_every else [])
    else:
        words += [f"ε {row.epsilon:g}" if objective == "grpo" else f"β {row.beta:g}"]
    return ", ".join(words)


def edges(rows: Sequence[Run]) -> list[str]:
    """Return the arms whose chosen learning rate is the lowest or highest that was tried."""
    found = []
    for objective, arm in itertools.product(objectives_of(rows), ARMS):
        rates = {r.learning_rate for r in rows if (r.objective, r.arm, r.phase) == (objective, arm, "tuning")}
        rate = final(rows, objective=objective, arm=arm)[0].learning_rate
        if rates and rate in (min(rates), max(rates)):
            found.append(f"{objective.upper()} {arm} ({rate:g})")
    return found


def objectives_of(rows: Sequence[Run]) -> list[str]:
    """Return the objectives that have final rows."""
    return list(dict.fromkeys(row.objective for row in rows if row.phase == "final"))


def figure(rows: list[Run], image: Path) -> None:
    """Draw the chosen setting of each arm with its interval, beside all settings that it was tuned over."""
    names = objectives_of(rows)
    drawn, axes = panels(len(names), width=3.6)
    for one, objective in zip(axes, names, strict=True):
        for place, arm in enumerate(ARMS):
            interval = mean_reward(rows, objective=objective, arm=arm)
            one.plot([place] * 2, [interval.low, interval.high], color=color(arm), lw=6, alpha=0.35)
            one.plot([place], [interval.mean], "o", color=color(arm))
            tried = sweep(rows, objective, arm)
            one.plot([place + 0.25] * len(tried), tried, "_", color="#9ca3af", ms=12)
        one.axhline(fmean(row.start for row in final(rows, objective=objective)), color="black", lw=0.8, ls=":")
        one.set_xticks(range(len(ARMS)), ARMS)
        one.set_ylim(0, 1)
        one.set_title(objective.upper(), loc="left")
    axes[0].set_ylabel("held-out reward")
    axes[0].plot([], [], "_", color="#9ca3af", ms=12, label="each setting in the tuning")
    axes[0].plot([], [], color="black", lw=0.8, ls=":", label="start")
    axes[0].legend(frameon=False, fontsize=9, loc="lower right")
    save(drawn, image)


def paragraph(rows: list[Run]) -> str:
    names = objectives_of(rows)
    lines = [*_findings(rows, names), "", f"| | {' | '.join(ARMS)} | humanline − plain |", "|---" * 6 + "|"]
    for objective in names:
        cells = [f"{mean_reward(rows, objective=objective, arm=arm)} ({chosen(rows, objective, arm)})" for arm in ARMS]
        seeds = wins(rows, "humanline", "plain", objective=objective)
        cells.append(f"{gain(rows, 'humanline', 'plain', objective=objective).signed}, {seeds} seeds")
        lines.append(f"| {objective.upper()} | {' | '.join(cells)} |")
    if any(row.phase == "tuning" for row in rows):
        lines += ["", "What the eight settings of an arm gave in the tuning, from the worst to the best:", ""]
        lines += [f"| | {' | '.join(ARMS)} |", "|---" * 5 + "|"]
        for objective in names:
            tried = [sweep(rows, objective, arm) for arm in ARMS]
            cells = [f"{', '.join(f'{value:.2f}' for value in one)} (mean {fmean(one):.2f})" for one in tried]
            lines.append(f"| {objective.upper()} | {' | '.join(cells)} |")
        lines += ["", _blindly(rows, names)]
    starts = [row.start for row in final(rows, objective=names[0], arm="plain")]
    ends = ", ".join(edges(rows)) or "none"
    lines += ["", f"The starts have {fmean(starts):.3f}. {_budget(rows)} Arms with a learning rate at an end: {ends}."]
    return "\n".join(lines)


def _blindly(rows: Sequence[Run], names: Sequence[str]) -> str:
    """Return whether the mean setting of the grid is better with humanline than without."""
    better = [o for o in names if fmean(sweep(rows, o, "humanline")) > fmean(sweep(rows, o, "plain"))]
    listed = [", ".join(o.upper() for o in part) or "none" for part in (better, [o for o in names if o not in better])]
    return (
        f"A setting taken blindly from the grid is on average better with humanline than plain for {listed[0]}, and no "
        f"better for {listed[1]}."
    )


def _findings(rows: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Return what holds and what does not as sentences, negative results first."""
    found: dict[str, list[str]] = {}
    for objective in names:
        ours = gain(rows, "humanline", "plain", objective=objective)
        clamp = gain(rows, "humanline", "clamp", objective=objective)
        fresh = gain(rows, "online", "humanline", objective=objective)
        said = [
            ("Humanline is worse than tuned plain training", ours.high < 0, ours),
            (
                "Humanline shows no gain over tuned plain training",
                ours.low <= 0 <= ours.high,
                ours,
            ),
            ("The sync shows no gain over the clamp alone", clamp.low <= 0 <= clamp.high, clamp),
            ("The sync makes the clamp alone worse", clamp.high < 0, clamp),
            ("Online stays ahead of humanline", fresh.low > 0, fresh),
            ("Humanline gains over tuned plain training", ours.low > 0, ours),
            ("The sync adds to the clamp alone", clamp.low > 0, clamp),
            ("Humanline reaches online, as far as the seeds can show", fresh.low <= 0, fresh),
        ]
        for text, holds, interval in said:
            found.setdefault(text, [])
            if holds:
                found[text].append(f"{objective.upper()} {interval.signed}")
    return [f"- {text}: {'; '.join(parts)}." for text, parts in found.items() if parts]


def _budget(rows: Sequence[Run]) -> str:
    seeds = {phase: sorted({row.seed for row in rows if row.phase == phase}) for phase in ("tuning", "final")}
    return (
        f"{SIZE.steps} steps of {SEQUENCES} answers, {SIZE.layers} layers of {SIZE.hidden}; eight settings for every "
        f"arm; tuning seeds {seeds['tuning']}, final seeds {seeds['final']}; {len(rows)} runs, "
        f"{cpu_seconds(rows):.0f} CPU seconds."
    )


def _gains(rows: list[Run]) -> str:
    return "; ".join(
        f"{o.upper()} {gain(rows, 'humanline', 'plain', objective=o).signed} over plain, "
        f"{gain(rows, 'humanline', 'online', objective=o).signed} over online"
        for o in objectives_of(rows)
    )


def _parity(rows: list[Run]) -> str:
    """Parity is a gain over plain, and no loss to online that the seeds can show."""
    names = objectives_of(rows)
    gains = [o for o in names if gain(rows, "humanline", "plain", objective=o).low > 0]
    level = [o for o in names if gain(rows, "humanline", "online", objective=o).high >= 0]
    if len(gains) == len(level) == len(names):
        return "holds"
    if not gains and not level:
        return "does not hold"
    listed = [", ".join(map(str.upper, part)) or "none" for part in (gains, level)]
    return f"holds only in part: a gain for {listed[0]}; parity with online for {listed[1]}"


EXPERIMENT = Experiment(
    name="llama",
    title="The trainer on a small Llama",
    kind=Run,
    run=run,
    figure=figure,
    paragraph=paragraph,
    claims=(
        Claim(
            "offline + humanline = online, on a transformer",
            "parity in win rate",
            _gains,
            _parity,
            "Plain training has its own trust region once the learning rate and β (GRPO: ε) are tuned; the clamp sets "
            "one whatever they are.",
        ),
    ),
    protocol=PROTOCOL,
    arms=[arms(loss) for loss in OBJECTIVES],
)
