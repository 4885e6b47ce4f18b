"""Detects known failures of humanline runs in their logs (arXiv 2509.24207, section 5)."""

import math
import warnings
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from transformers import TrainerCallback

from humanline_fused.perception.diagnostics import WINDOW, policy_left, reference_left
from humanline_fused.training.config import HumanlineConfig

MARGINS = "eval_rewards_initial/margins"
"""Reward margin of held-out pairs against the initial policy: 0 at the start."""

SURPLUS = "humanline/surplus"
"""Surplus surprisal of the data under the reference: flat while the data fit it."""

DRIFT = "humanline/data_drift"
"""Drop of the data's log-prob under the policy since the start: the reference's next sync takes it over."""

REWARDS = ("reward", "heldout/reward", "eval_reward", MARGINS)
"""Metrics that rise as the policy improves."""

SMALL_CADENCE = 12
"""A collapse with k below this is attributed to k: the paper's small models have 12 to 24."""

FEWEST_LINES = 10
"""Minimal number of log lines for a judgement, except on a loss that is not finite."""

EXPLODED = 10
"""A gradient norm above this multiple of the median of the previous lines has exploded."""


class FailureSign(UserWarning):
    """Warning that a run shows a sign of failure. The run continues; the text has the observation and the remedy."""


def collapsed(values: Sequence[float], start: float) -> bool:
    """Return whether the last two values have lost more than half of the gain over ``start``.

    A gain of less than a fifth of the best value is treated as noise.

    >>> collapsed([0.2, 0.6, 0.5, 0.6], start=0.2), collapsed([0.2, 0.6, 0.3, 0.2], start=0.2)
    (False, True)
    """
    best = max(values)
    gain = best - start
    return len(values) > 3 and gain > abs(best) / 5 and max(values[-2:]) < start + gain / 2


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in line.items() if isinstance(value, int | float)}


class FailureSigns(TrainerCallback):
    """Warns once of each sign; stops the run if the loss is not finite.

    - A reward collapses with a small k.
    - A synced reference has left the data, or its next sync will take it there. Rounds are not judged: their data are
      new, and pairs of the best and the worst sample are surprising by choice.
    - The gradient norm explodes.
    - No token was clamped in the first half of the run, and there is no gain: held-out margins (GRPO: the held-out
      loss) are no better than at the start or, without an evaluation, ``rewards/margins`` are not above 0 on average
      (GRPO is not judged then).

    A resumed run includes its earlier log lines.
    """

    def __init__(self, config: HumanlineConfig) -> None:
        self.config = config
        self.seen: dict[str, list[float]] = {}
        self.warned: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        numbers = _numbers(logs or {})
        step = state.global_step
        loss = numbers.get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {step}, or was since the last log line: the run stops. Its checkpoints "
                "have finite weights: lower learning_rate (0.1x to 0.5x) or max_grad_norm (0.5), and resume from one "
                "of them"
            )
        self._remember(numbers)
        if state.is_world_process_zero:
            self._collapse(numbers, step)
            self._drift(numbers, step)
            self._explosion(numbers, step)
            self._no_gain(numbers, state)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen = {}
        for line in state.log_history:
            self._remember(_numbers(line))

    def _remember(self, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            if math.isfinite(value):
                self.seen.setdefault(name, []).append(value)

    def _warn(self, sign: str, text: str) -> None:
        if sign not in self.warned:
            self.warned.add(sign)
            warnings.warn(text, FailureSign, stacklevel=3)

    def _collapse(self, numbers: dict[str, float], step: int) -> None:
        k = self.config.sync_every
        for name in REWARDS:
            values = self.seen.get(name, [])
            if name not in numbers or not values or k is None or k >= SMALL_CADENCE:
                continue
            start = 0.0 if name == MARGINS else values[0]
            if collapsed(values, start):
                self._warn(
                    "collapse",
                    f"{name} collapsed: {start:.3g} at the start, {max(values):.3g} at best, {values[-1]:.3g} at "
                    f"step {step}, with a sync every {k} step(s). Raise sync_every to more than half of the "
                    "run's steps (docs/choosing.md), or lower learning_rate",
                )

    def _drift(self, numbers: dict[str, float], step: int) -> None:
        surplus, drift = self.seen.get(SURPLUS, []), self.seen.get(DRIFT, [])
        k, rounds = self.config.sync_every, self.config.rollout_every is not None
        if not {SURPLUS, DRIFT} & numbers.keys() or k is None or rounds:
            return
        cadence = f"with a sync every {k} step(s)"
        if policy_left(drift, step // k):
            fell = f"their log-prob under it fell by {drift[-1]:.2f} nats per token up to step {step}"
            left = f"the policy has left the data: {fell}, and the reference follows, {cadence}"
        elif reference_left(surplus):
            start, now = fmean(surplus[:WINDOW]), fmean(surplus[-WINDOW:])
            rose = (
                f"their surplus surprisal under it rose from {start:.2f} to {now:.2f} nats per token up to step {step}"
            )
            left = f"the reference has left the data: {rose}, {cadence}"
        else:
            return
        self._warn(
            "drift",
            f"{left}. This need not lower the reward: watch a held-out one and, if it stops rising, raise sync_every, "
            "or resample (a new round)",
        )

    def _explosion(self, numbers: dict[str, float], step: int) -> None:
        norms = self.seen.get("grad_norm", [])
        if "grad_norm" not in numbers or len(norms) <= FEWEST_LINES or not math.isfinite(numbers["grad_norm"]):
            return
        usual = median(norms[:-1])
        if norms[-1] > EXPLODED * usual > 0:
            self._warn(
                "explosion",
                f"the gradient norm is {norms[-1]:.3g} at step {step}, its median over previous log lines {usual:.3g}: "
                "the run is unstable. Lower learning_rate (0.1x to 0.5x), or max_grad_norm (0.5)",
            )

    def _no_gain(self, numbers: dict[str, float], state: Any) -> None:
        unclamped = self.seen.get("humanline/unclamped", [])
        too_early = len(unclamped) < FEWEST_LINES or 2 * state.global_step < state.max_steps
        if "loss" not in numbers or self.config.humanline_clamp is None or too_early or min(unclamped) < 1:
            return
        if not self._gained():
            self._warn(
                "no gain",
                f"no token was clamped in {len(unclamped)} log lines, and nothing was gained up to step "
                f"{state.global_step}: the updates are too small, or the data too unlikely under the policy. "
                "Raise learning_rate (2x to 4x) or sync_every, or take data with a higher log-prob under the policy",
            )

    def _gained(self) -> bool:
        held_out, losses = self.seen.get(MARGINS, []), self.seen.get("eval_loss", [])
        if held_out:
            return held_out[-1] > 0
        if len(losses) > 1:
            return losses[-1] < losses[0]
        margins = self.seen.get("rewards/margins", [])
        return not margins or fmean(margins) > 0
