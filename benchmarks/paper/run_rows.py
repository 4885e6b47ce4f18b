"""One training of a tiny policy or of the Llama as a row of the results."""

import math
from dataclasses import dataclass

from torch import Tensor

from humanline_fused.tiny import Curves, Loss


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        experiment: its name.
        phase: ``tuning`` or ``final``.
        condition: what the arms are compared under, such as the source of the data.
        arm: name of what is compared.
        objective: the loss.
        seed: of prompts and samples.
        learning_rate, beta, epsilon: settings of the loss.
        width: humanline's bounds are ±width, nats; inf: none.
        sync_every: k; None: the reference is never synced.
        resample_every: steps between two draws of samples; None: offline.
        start, reward, best: held-out reward before training, after it, and the highest on the way.
        surplus_start, surplus_end: surplus surprisal of the data under the reference, nats per token: mean of the first
            and of the last tenth of the steps.
        ratio_end: mean of π_θ / π_ref over the last tenth.
        drop: fall of the data's mean log-prob under the policy from the first to the last tenth, nats per token.
        unclamped: share of tokens within the bounds, or kept by humanline sampling.
        length: mean tokens of held-out samples at the end; None for answers of fixed length.
        cpu_seconds: of the process, divided by the trainings that ran at once.
        gamma_P: of humanline sampling; 0: no token is rejected.
        steps, rewards: evaluations.
    """

    experiment: str
    phase: str
    condition: str
    arm: str
    objective: str
    seed: int
    learning_rate: float
    beta: float
    epsilon: float
    width: float
    sync_every: int | None
    resample_every: int | None
    start: float
    reward: float
    best: float
    surplus_start: float | None = None
    surplus_end: float | None = None
    ratio_end: float | None = None
    drop: float | None = None
    unclamped: float | None = None
    length: float | None = None
    cpu_seconds: float | None = None
    gamma_P: float = 0.0
    steps: tuple[int, ...] = ()
    rewards: tuple[float, ...] = ()

    @property
    def setting(self) -> tuple[object, ...]:
        """What an arm is tuned over."""
        return (self.learning_rate, self.beta, self.epsilon, self.width, self.sync_every, self.gamma_P)

    @property
    def words(self) -> str:
        """Its settings that may have been tuned."""
        parts = [f"lr {self.learning_rate:g}"]
        parts.append(f"ε {self.epsilon:g}" if self.objective == "grpo" else f"β {self.beta:g}")
        if math.isfinite(self.width):
            parts.append(f"±{self.width:g}")
        if self.sync_every:
            parts.append(f"k = {self.sync_every}")
        return ", ".join(parts)


def rows_of(
    curves: Curves, seconds: float, *, experiment: str, phase: str, condition: str, arm: str, objective: Loss
) -> list[Run]:
    """Return a row for each setting and seed of trained policies, ``seconds`` of CPU each."""
    tenth = max(1, curves.surplus.shape[-1] // 10)
    first, last = slice(0, tenth), slice(-tenth, None)

    def ends(series: Tensor, part: slice) -> Tensor:
        return series[..., part].mean(-1)

    found = []
    for a, setting in enumerate(curves.settings):
        for s, seed in enumerate(curves.seeds):
            rewards = tuple(round(float(value), 5) for value in curves.reward[a, s])
            found.append(
                Run(
                    experiment=experiment,
                    phase=phase,
                    condition=condition,
                    arm=arm,
                    objective=objective,
                    seed=seed,
                    learning_rate=setting.learning_rate,
                    beta=setting.beta,
                    epsilon=setting.epsilon,
                    width=setting.log_epsilon_R,
                    sync_every=setting.sync_every,
                    resample_every=setting.resample_every,
                    start=rewards[0],
                    reward=rewards[-1],
                    best=max(rewards),
                    surplus_start=_number(ends(curves.surplus, first)[a, s]),
                    surplus_end=_number(ends(curves.surplus, last)[a, s]),
                    ratio_end=_number(ends(curves.mean_ratio, last)[a, s]),
                    drop=_number((ends(curves.logp, first) - ends(curves.logp, last))[a, s]),
                    unclamped=_number(curves.unclamped[a, s]),
                    length=None if curves.length is None else _number(curves.length[a, s, -1]),
                    cpu_seconds=round(seconds, 3),
                    gamma_P=setting.gamma_P,
                    steps=tuple(curves.steps) if phase == "final" else (),
                    rewards=rewards if phase == "final" else (),
                )
            )
    return found


def _number(value: Tensor) -> float:
    return float(f"{float(value):.5g}")
