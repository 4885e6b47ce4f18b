"""The objectives that are compared: one record for each, with its loss, its inputs and its goals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.peers import halos
from humanline_fused import dpo_loss, grpo_loss, kto_loss


@dataclass(frozen=True)
class SpeedGoals:
    """The least that the forward and backward on logits is to reach."""

    case: str
    name: str
    of_ceiling: dict[range, float]  # by vocabulary
    times_eager: float


@dataclass(frozen=True)
class Objective:
    name: str
    loss: Callable[..., Any]  # ours
    formula: Callable[..., Tensor]  # HALOs': of the clamped log-ratio, both log-probs, the batch and the settings
    settings: dict[str, float]  # keyword arguments of the loss beside the clamp
    takes: tuple[str, ...]  # fields of a batch that the loss takes after the mask
    sums: bool  # whether β multiplies a sequence's log-ratio and not a token's
    goals: SpeedGoals


ANY_V, SHORT_V, LONG_V = range(2**31), range(64 * 1024), range(64 * 1024, 152 * 1024)

DPO_GOALS = SpeedGoals("dpo", "DPO", {ANY_V: 0.90}, times_eager=4.0)
KTO_GOALS = SpeedGoals("kto", "KTO", {ANY_V: 0.90}, times_eager=4.0)
GRPO_GOALS = SpeedGoals("grpo_one_launch", "GRPO in one launch", {SHORT_V: 0.85, LONG_V: 0.80}, times_eager=5.0)

KTO_SETTINGS, GRPO_SETTINGS = {"beta": 0.1, "kl": 0.2}, {"beta": 0.01, "epsilon": 0.2}

OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("dpo", dpo_loss, halos.dpo, {"beta": 0.1}, (), sums=True, goals=DPO_GOALS),
        Objective("kto", kto_loss, halos.kto, KTO_SETTINGS, ("desirable",), sums=True, goals=KTO_GOALS),
        Objective("grpo", grpo_loss, halos.grpo, GRPO_SETTINGS, ("advantages",), sums=False, goals=GRPO_GOALS),
    )
}
