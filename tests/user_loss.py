"""A loss of a user's file."""

from typing import Any

from humanline_fused.training import PAIRS, Objective, pair_metrics

NUMBER = 4
"""No loss: naming it as one is an error."""


class APOZero(Objective):
    """The documented loss."""

    name = "apo_zero"
    form = PAIRS

    def loss(self, tokens: Any, config: Any) -> Any:
        rewards = config.beta * tokens.sums(tokens.log_ratio)
        chosen, rejected = rewards.chunk(2)
        return (1 - chosen.sigmoid() + rejected.sigmoid()).mean(), pair_metrics(rewards, tokens.sums(tokens.logp))


class WithMargin(APOZero):
    """One with an argument."""

    def __init__(self, margin: Any) -> None:
        self.margin = margin
