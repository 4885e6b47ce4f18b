"""What samples cost: processor seconds to a held-out reward, online and offline, on the small Llama.

The settings are those that the experiment ``llama`` has chosen. The seconds are the trainer's own (``time/training``,
``time/generation``, ``time/reward``), read from the processor's clock, because the machine may be shared.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.paper.drawing import color, panels, save
from benchmarks.paper.experiment import Claim, Experiment
from benchmarks.paper.intervals import final
from benchmarks.paper.letters import SAMPLES, SEQUENCES, Letters, make
from benchmarks.paper.llama import QUICK, SIZE, arms, fields_of, key_of
from benchmarks.paper.protocol import SEEDS, Protocol
from benchmarks.paper.run_rows import Run
from benchmarks.results import RESULTS, read
from humanline_fused.tiny import Loss, Setting

OBJECTIVE: Loss = "dpo"
QUICK_OBJECTIVE: Loss = "grpo"
STALE = 8
"""Steps of a round of the stale arm: a fifth of a run. The paper's 64 are a 25th of its 1,600 steps."""

ARMS = ("online", "stale", "plain", "humanline")
EVALUATE_EVERY = 4
FACTORS = (1, 3, 10, 30, 100)
"""How many times more a sample may cost than here."""

PAPER = 6.2
"""The paper's ratio of online to offline seconds with DPO."""


@dataclass(frozen=True)
class Timed:
    """One run with its seconds.

    Attributes:
        arm: ``online``: new samples at every step; ``stale``: every :data:`STALE` steps; ``plain`` and ``humanline``:
            offline.
        objective: the loss.
        seed: of start, prompts and samples.
        steps, rewards: evaluations; step 0 is the start.
        training, generation, labelling: processor seconds up to each of ``steps``; generation is sampling.
        data_seconds: processor seconds of drawing and scoring the answers that offline runs use, once.
        samples: answers that were drawn in the run.
    """

    arm: str
    objective: str
    seed: int
    steps: tuple[int, ...]
    rewards: tuple[float, ...]
    training: tuple[float, ...]
    generation: tuple[float, ...]
    labelling: tuple[float, ...]
    data_seconds: float
    samples: int

    def seconds(self, factor: float = 1.0, *, with_data: bool = False) -> list[float]:
        """Return the seconds up to each evaluation.

        Args:
            factor: how many times as much a sample costs.
            with_data: count the drawing of the offline data too, as far as they were used.
        """
        data = self.data_seconds if with_data and not self.samples else 0.0
        drawn = [part + data * step / self.steps[-1] for part, step in zip(self.generation, self.steps, strict=True)]
        parts = zip(self.training, self.labelling, drawn, strict=True)
        return [trained + labelled + factor * one for trained, labelled, one in parts]

    def seconds_to(self, target: float, factor: float = 1.0, *, with_data: bool = False) -> float | None:
        """Return the seconds at which the reward first reaches ``target``, between evaluations on a straight line.

        Returns:
            None if it never does.

        >>> run = Timed("online", "dpo", 0, (0, 4), (0.2, 0.6), (0.0, 2.0), (0.0, 1.0), (0.0, 0.0), 0.0, 64)
        >>> run.seconds_to(0.4), run.seconds_to(0.4, factor=2), run.seconds_to(0.7)
        (1.5, 2.0, None)
        """
        passed = self.seconds(factor, with_data=with_data)
        for i in range(len(self.rewards)):
            if self.rewards[i] >= target:
                if not i:
                    return passed[0]
                share = (target - self.rewards[i - 1]) / (self.rewards[i] - self.rewards[i - 1])
                return passed[i - 1] + share * (passed[i] - passed[i - 1])
        return None


def chosen_settings() -> dict[str, Setting]:
    """Return the settings that ``llama`` has chosen, by arm.

    Raises:
        ValueError: it was not run.
    """
    file = RESULTS / "paper/llama.csv"
    if not file.is_file():
        raise ValueError(f"expected the settings chosen by `python -m benchmarks paper llama`, got no file {file}")
    rows = read(file, Run)[1]
    found = {arm: key_of(final(rows, objective=OBJECTIVE, arm=arm)[0])[2] for arm in ("plain", "humanline", "online")}
    return found | {"stale": replace(found["online"], resample_every=STALE)}


def run(protocol: Protocol) -> list[Timed]:
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    if protocol.small:
        settings = {arm: tried[0] for arm, tried in arms(QUICK_OBJECTIVE).items()}
        settings["stale"] = replace(settings["online"], resample_every=STALE)
        size, objective = QUICK, QUICK_OBJECTIVE
    else:
        settings, size, objective = chosen_settings(), replace(SIZE, steps=protocol.steps), OBJECTIVE
    rows = []
    for seed in protocol.final[:2] if protocol.small else protocol.final:
        letters = make(size, seed)
        rows += [timed(letters, objective, arm, settings[arm]) for arm in ARMS]
    return rows


def timed(letters: Letters, objective: Loss, arm: str, setting: Setting) -> Timed:
    """Train once."""
    trained = letters.train(objective, fields_of(setting, objective), evaluate_every=EVALUATE_EVERY)
    parts = [(0.0, *(round(x, 3) for x in part)) for part in zip(*trained.seconds, strict=True)]
    rewards = (letters.start, *trained.rewards)
    return Timed(
        arm=arm,
        objective=objective,
        seed=letters.seed,
        steps=(0, *trained.steps),
        rewards=tuple(round(value, 5) for value in rewards),
        training=parts[0],
        generation=parts[1],
        labelling=parts[2],
        data_seconds=round(letters.sampling_seconds, 3),
        samples=letters.size.steps * SEQUENCES // 2 * SAMPLES if setting.resample_every else 0,
    )


def of_arm(rows: Sequence[Timed], arm: str) -> list[Timed]:
    """Return an arm's rows."""
    return [row for row in rows if row.arm == arm]


def target(rows: Sequence[Timed]) -> float:
    """Return the reward that the arms are timed to: half of what online gains over the start, on average."""
    online = of_arm(rows, "online")
    start, end = fmean(row.rewards[0] for row in online), fmean(row.rewards[-1] for row in online)
    return (start + end) / 2


def mean_seconds(rows: Sequence[Timed], arm: str, factor: float = 1.0, *, with_data: bool = False) -> float | None:
    """Return an arm's mean seconds to the target; None if it is not reached with every seed."""
    goal = target(rows)
    found = [row.seconds_to(goal, factor, with_data=with_data) for row in of_arm(rows, arm)]
    reached = [seconds for seconds in found if seconds is not None]
    return fmean(reached) if len(reached) == len(found) else None


def ratio(rows: Sequence[Timed], factor: float, *, with_data: bool = False) -> float | None:
    """Return online's seconds over humanline's; None where one of them does not reach the target."""
    online, offline = mean_seconds(rows, "online", factor), mean_seconds(rows, "humanline", factor, with_data=with_data)
    return None if online is None or offline is None else online / offline


def implied_factor(rows: Sequence[Timed]) -> float | None:
    """Return how many times more a sample must cost for the paper's ratio: both sides are linear in the factor."""
    online, more, offline = (mean_seconds(rows, arm, f) for arm, f in (("online", 0), ("online", 1), ("humanline", 0)))
    if online is None or more is None or offline is None or more == online:
        return None
    return (PAPER * offline - online) / (more - online)


def figure(rows: list[Timed], image: Path) -> None:
    """Draw reward over seconds, and the ratio of seconds over the cost of a sample."""
    drawn, (left, right) = panels(2)
    shades = {"online": color("online"), "stale": color("stale"), "plain": color("plain")}
    for arm in ARMS:
        mine = of_arm(rows, arm)
        passed = [fmean(values) for values in zip(*(row.seconds() for row in mine), strict=True)]
        reward = [fmean(values) for values in zip(*(row.rewards for row in mine), strict=True)]
        left.plot(passed, reward, color=shades.get(arm, color(arm)), lw=2, label=arm)
    left.axhline(target(rows), color="black", lw=0.8, ls=":", label="target")
    left.set_xlabel("processor seconds, without evaluation")
    left.set_ylabel("held-out reward")
    left.legend(frameon=False, fontsize=9)
    for with_data, style, label in ((False, "-", "data at hand"), (True, "--", "data drawn for the run")):
        points = [(factor, ratio(rows, factor, with_data=with_data)) for factor in FACTORS]
        known = [(factor, value) for factor, value in points if value is not None]
        if known:
            right.plot(*zip(*known, strict=True), style, marker="o", color=color("humanline"), label=label)
    right.axhline(PAPER, color="black", lw=0.8, ls=":", label=f"the paper's {PAPER}")
    right.set_xscale("log")
    right.set_xlabel("cost of a sample, times ours")
    right.set_ylabel("seconds online / offline + humanline")
    right.legend(frameon=False, fontsize=9)
    save(drawn, image)


def _number(value: float | None, form: str = ".2f") -> str:
    return "not reached" if value is None else format(value, form)


def paragraph(rows: list[Timed]) -> str:
    goal, implied = target(rows), implied_factor(rows)
    lines = [
        f"To a held-out reward of {goal:.3f} (half of what online gains), {len(of_arm(rows, 'online'))} seeds, "
        f"{rows[0].objective.upper()}. **Seconds of a small model on a processor say nothing about a cluster;** what "
        "carries over is the arithmetic below.",
        "",
        "| | seconds to the target | whole run: training | sampling | labelling | final reward |",
        "|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        mine = of_arm(rows, arm)
        reached = sum(row.seconds_to(goal) is not None for row in mine)
        seconds = mean_seconds(rows, arm)
        cell = _number(seconds) if seconds is not None else f"reached with {reached} of {len(mine)} seeds"
        parts = [fmean(getattr(row, name)[-1] for row in mine) for name in ("training", "generation", "labelling")]
        cells = [cell, *(f"{part:.2f}" for part in parts), f"{fmean(row.rewards[-1] for row in mine):.3f}"]
        lines.append(f"| {_words(arm)} | {' | '.join(cells)} |")
    lines += [
        "",
        _limits(rows),
        "",
        f"| cost of a sample, times ours | {' | '.join(map(str, FACTORS))} |",
        "|---" * (len(FACTORS) + 1) + "|",
    ]
    for with_data, words in ((False, "data at hand"), (True, "data drawn for the run")):
        cells = [_number(ratio(rows, factor, with_data=with_data), ".1f") for factor in FACTORS]
        lines.append(f"| online / offline + humanline, {words} | {' | '.join(cells)} |")
    lines += [
        "",
        f"The paper's ratio of {PAPER} needs samples {_number(implied, '.0f')} times as expensive as here beside the "
        "same training step, and data that exist already. Where they are drawn for the run, the last row holds: then "
        "offline draws too, and leaves out the prompts whose answers have equal rewards.",
    ]
    return "\n".join(lines)


def _limits(rows: Sequence[Timed]) -> str:
    """Return what the ratio does not say: how far offline runs come, and that plain ones save the same samples."""
    end = fmean(row.rewards[-1] for row in of_arm(rows, "online"))
    ours = of_arm(rows, "humanline")
    reached = sum(max(row.rewards) >= end for row in ours)
    found = [
        f"Online's final reward, {end:.3f}, is reached by offline + humanline with {reached} of {len(ours)} seeds."
    ]
    plain, seconds = mean_seconds(rows, "plain"), mean_seconds(rows, "humanline")
    if plain is not None and seconds is not None:
        found.append(f"To the target, offline without humanline takes {plain / seconds:.2f} times its seconds.")
    return " ".join(found)


def _words(arm: str) -> str:
    return {"stale": f"online, a round of {STALE} steps", "plain": "offline", "humanline": "offline + humanline"}.get(
        arm, arm
    )


def _ours(rows: list[Timed]) -> str:
    implied = _number(implied_factor(rows), ".0f")
    return f"{_number(ratio(rows, 1), '.1f')}x here; {PAPER}x if a sample cost {implied} times as much"


def _holds(rows: list[Timed]) -> str:
    now = ratio(rows, 1)
    if now is None:
        return "does not hold: the target is not reached with every seed"
    if now >= PAPER:
        return "holds"
    return "holds only where samples are expensive" if now > 1 else "does not hold at this cost of a sample"


EXPERIMENT = Experiment(
    name="speed",
    title="The cost of samples",
    kind=Timed,
    run=run,
    figure=figure,
    paragraph=paragraph,
    claims=(
        Claim(
            "offline + humanline is faster than online training",
            "6.2x DPO, 6.5x KTO, > 6x GRPO",
            _ours,
            _holds,
            "The ratio is that of sampling to training, so it depends on the cost of a sample more than on the method.",
        ),
    ),
    protocol=Protocol(first=(), second=(), final=SEEDS[:6], steps=SIZE.steps),
    arms=[ARMS, STALE, EVALUATE_EVERY],
)
