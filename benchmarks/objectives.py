"""The objectives that are compared: one record for each, with its loss and its inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.peers import halos
from humanline_fused import dpo_loss, grpo_loss, kto_loss


@dataclass(frozen=True)
class Objective:
    name: str
    loss: Callable[..., Any]  # ours
    formula: Callable[..., Tensor]  # HALOs': of the clamped log-ratio, both log-probs, the batch and the settings
    settings: dict[str, float]  # keyword arguments of the loss beside the clamp
    takes: tuple[str, ...]  # fields of a batch that the loss takes after the mask
    sums: bool  # whether β multiplies a sequence's log-ratio and not a token's


KTO_SETTINGS, GRPO_SETTINGS = {"beta": 0.1, "kl": 0.2}, {"beta": 0.01, "epsilon": 0.2}

OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("dpo", dpo_loss, halos.dpo, {"beta": 0.1}, (), sums=True),
        Objective("kto", kto_loss, halos.kto, KTO_SETTINGS, ("desirable",), sums=True),
        Objective("grpo", grpo_loss, halos.grpo, GRPO_SETTINGS, ("advantages",), sums=False),
    )
}
