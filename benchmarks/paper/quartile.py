"""Data by the paper's measure of quality: prompts by their samples' mean token log-prob under the initial policy."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.paper.arms import humanline, plain, varied
from benchmarks.paper.drawing import color, line, panels, save
from benchmarks.paper.experiment import Claim, Experiment
from benchmarks.paper.intervals import Interval, bootstrap, effort, final, gain, mean_reward
from benchmarks.paper.protocol import SEEDS, Arms, Comparison, Protocol
from benchmarks.paper.run_rows import Run
from humanline_fused.tiny import Parameters, Policies, Trainings
from humanline_fused.tiny.policies import chosen_logp

PROMPTS = 16
QUARTERS = ("lowest", "second", "third", "highest")
EVERYTHING = "all"
SYNC_EVERY = 50
EPSILONS = (0.2, 10.0)
WIDTHS = (0.3, 1.5)
LEARNING_RATES = (1e-3, 3e-3, 1e-2)


def quarter(number: int, policies: Policies, start: Parameters, prompts: Tensor, samples: Tensor) -> Tensor:
    """Return the prompts of a quarter, 0 the lowest, by their samples' mean token log-prob.

    Args:
        number: of the quarter.
        policies: architecture.
        start: initial parameters of M policies.
        prompts: [M, P, digits].
        samples: [M, P, G, T].

    Returns:
        Indices, [M, P / 4].
    """
    size = samples.shape[1] // len(QUARTERS)
    features = policies.task.encode(prompts).repeat_interleave(samples.shape[2], 1)
    answers = samples.flatten(1, 2)
    logp = chosen_logp(policies.logits(start, features, answers), answers)
    by_prompt = logp.mean(-1).unflatten(1, samples.shape[1:3]).mean(-1)
    return by_prompt.argsort(-1)[:, number * size : (number + 1) * size]


def any_quarter(policies: Policies, start: Parameters, prompts: Tensor, samples: Tensor) -> Tensor:
    """Return as many prompts as a quarter has, whatever their log-prob; arguments as :func:`quarter`."""
    return torch.arange(samples.shape[1] // len(QUARTERS)).expand(samples.shape[0], -1)


CONDITIONS = {name: partial(quarter, number) for number, name in enumerate(QUARTERS)} | {EVERYTHING: any_quarter}


def arms() -> Arms:
    """Return six settings of both arms."""
    return {
        "plain": varied(plain("grpo"), epsilon=EPSILONS, learning_rate=LEARNING_RATES),
        "humanline": [
            one for width in WIDTHS for one in varied(humanline(SYNC_EVERY, width), learning_rate=LEARNING_RATES)
        ],
    }


def run(protocol: Protocol) -> list[Run]:
    found = []
    mine = arms()
    mine = {arm: settings[::5] for arm, settings in mine.items()} if protocol.small else mine
    for condition, choose in CONDITIONS.items():
        trainings = Trainings("grpo", prompts=PROMPTS, choose=choose, drawn=len(QUARTERS) * PROMPTS)
        found += Comparison("quartile", condition, trainings, protocol).compare(mine)
    return found


def figure(rows: list[Run], image: Path) -> None:
    figure, (axes,) = panels(1, 5, 3.6)
    for arm in arms():
        groups = [[row.reward for row in final(rows, condition=one, arm=arm)] for one in CONDITIONS]
        line(axes, range(4), groups[:4], arm, color(arm))
        axes.axhline(bootstrap(groups[4]).mean, color=color(arm), ls=":", lw=1.2, label=f"{arm}, all prompts")
    axes.set_xticks(range(4), [f"{name}\nquarter" for name in QUARTERS])
    axes.set_ylim(0.3, 1)
    axes.set_xlabel("prompts by their samples' log-prob under the initial policy")
    axes.set_ylabel("expected held-out reward")
    axes.set_title("GRPO, offline, every arm tuned (95 % bars)", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    save(figure, image)


def across(rows: list[Run], arm: str) -> Interval:
    """Return an arm's reward with the highest quarter minus that with the lowest."""
    low, high = (final(rows, arm=arm, condition=one) for one in (QUARTERS[0], QUARTERS[-1]))
    return bootstrap([b.reward - a.reward for a, b in zip(low, high, strict=True)])


def paragraph(rows: list[Run]) -> str:
    gains = {name: gain(rows, "humanline", "plain", condition=name) for name in CONDITIONS}
    below, above = [n for n, g in gains.items() if g.high < 0], [n for n, g in gains.items() if g.low > 0]
    lines = [
        f"Humanline is worse than plain on: {_listed(below)}; better on: {_listed(above)}. "
        f"From the lowest to the highest quarter plain gains {across(rows, 'plain').signed} of reward, "
        f"humanline {across(rows, 'humanline').signed}.",
        "",
        f"| | {' | '.join(f'{name} quarter' for name in QUARTERS)} | all prompts |",
        f"|---|{'---|' * len(CONDITIONS)}",
    ]
    for arm in arms():
        cells = []
        for condition in CONDITIONS:
            row = final(rows, arm=arm, condition=condition)[0]
            cells.append(f"{mean_reward(rows, arm=arm, condition=condition)} ({row.words})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    seeds = len(final(rows, arm="plain", condition=EVERYTHING))
    lines += ["", f"GRPO, 6 settings for every arm, {seeds} final seeds; {effort(rows)}"]
    return "\n".join(lines)


def _listed(names: list[str]) -> str:
    return ", ".join(f"{name} prompts" if name == EVERYTHING else f"the {name} quarter" for name in names) or "none"


def _verdict(rows: list[Run]) -> str:
    usual, ours = across(rows, "plain").low > 0, across(rows, "humanline").low > 0
    if usual and ours:
        return "holds"
    return "holds only for plain training" if usual else "holds only for humanline" if ours else "does not hold"


EXPERIMENT = Experiment(
    name="quartile",
    title="Quarters of the data by log-prob",
    kind=Run,
    run=run,
    figure=figure,
    paragraph=paragraph,
    claims=(
        Claim(
            "data of low mean token log-prob under the initial reference train worse",
            "bottom quarter [−1.03, −.36] nats worse",
            lambda rows: (
                "highest − lowest quarter: " + "; ".join(f"{arm} {across(rows, arm).signed}" for arm in arms())
            ),
            _verdict,
            "With PPO's clip opened (ε = 10) plain training learns from unlikely samples as well as from likely ones.",
        ),
    ),
    protocol=Protocol(survivors=2, final=SEEDS[:8]),
    arms=arms(),
)
