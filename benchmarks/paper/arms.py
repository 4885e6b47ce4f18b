"""Arms that experiments compare, with the settings that each is tuned over."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from humanline_fused.tiny import Loss, Setting

LEARNING_RATES = {
    "plain": {"dpo": (1e-4, 3e-4, 1e-3, 3e-3), "kto": (3e-4, 1e-3, 3e-3, 1e-2), "grpo": (3e-4, 1e-3, 3e-3, 1e-2)},
    "humanline": dict.fromkeys(("dpo", "kto", "grpo"), (3e-4, 1e-3, 3e-3, 1e-2)),
}
"""Four learning rates, with the best ones inside."""

BETAS = (0.03, 0.06, 0.1, 0.2, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
EPSILONS = (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.5, 3.0, 10.0, 100.0, math.inf)
WIDTHS = (0.2, 0.5, 1.0, 1.5)
CADENCES = (100, 50, 25)
PAPER_WIDTH = 1.5


def bounds(width: float) -> dict[str, Any]:
    """Return humanline's bounds ±width."""
    return {"log_epsilon_P": -width, "log_epsilon_R": width}


def plain(loss: Loss) -> Setting:
    """Return the plain loss. GRPO's reference is the policy that wrote the samples, so its ratio is PPO's."""
    return Setting("plain", follows_data=loss == "grpo")


def humanline(sync_every: int, width: float = PAPER_WIDTH) -> Setting:
    """Return clamp and sync."""
    return Setting("humanline", sync_every=sync_every, **bounds(width))


def clamped(width: float = PAPER_WIDTH) -> Setting:
    """Return the clamp with a reference that is never synced."""
    return Setting("clamp", **bounds(width))


def synced(sync_every: int) -> Setting:
    """Return the sync without a clamp."""
    return Setting("sync", sync_every=sync_every)


def online(setting: Setting) -> Setting:
    """Return the same with samples of the current policy at every step."""
    return replace(setting, name="online", resample_every=1)


def varied(setting: Setting, **values: Sequence[Any]) -> list[Setting]:
    """Return the setting with every combination of the given values.

    >>> [one.beta for one in varied(Setting("plain"), beta=(0.1, 1.0))]
    [0.1, 1.0]
    """
    combinations = itertools.product(*values.values())
    return [replace(setting, **dict(zip(values, chosen, strict=True))) for chosen in combinations]


def tuned_regularisation(setting: Setting, loss: Loss, rates: str = "plain") -> list[Setting]:
    """Return 48 settings: 12 β (GRPO: ε) times four learning rates."""
    learning_rate = LEARNING_RATES[rates][loss]
    if loss == "grpo":
        return varied(setting, epsilon=EPSILONS, learning_rate=learning_rate)
    return varied(setting, beta=BETAS, learning_rate=learning_rate)


def tuned_humanline(loss: Loss) -> list[Setting]:
    """Return 48 settings: 4 widths times 3 cadences times four learning rates, at the usual β and ε."""
    made = [humanline(k, width) for width in WIDTHS for k in CADENCES]
    return [one for setting in made for one in varied(setting, learning_rate=LEARNING_RATES["humanline"][loss])]
