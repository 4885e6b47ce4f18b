"""GRPO: groups of completions with rewards (arXiv 2509.24207, section 4)."""

from dataclasses import dataclass, field

from humanline_fused.functional import grpo_loss
from humanline_fused.training.data.forms import GROUPS
from humanline_fused.training.objectives.metrics import Weighted, token_shares
from humanline_fused.training.objectives.objective import LossInputs, LossResult, Objective, result
from humanline_fused.training.objectives.settings import LossSettings, expect


@dataclass
class GRPOSettings(LossSettings):
    """Settings of GRPO."""

    epsilon: float = field(
        default=0.2, metadata={"help": "grpo: PPO's clip of the ratio to [1 - epsilon, 1 + epsilon_high]."}
    )
    epsilon_high: float | None = field(
        default=None, metadata={"help": "grpo: PPO's upper clip bound is 1 + epsilon_high; default epsilon."}
    )


class GRPO(Objective):
    """``−min(A r_t, A clip(r_t, 1 − ε, 1 + ε_high)) + β k3_t``, averaged over the tokens of the optimizer step."""

    name = "grpo"
    form = GROUPS
    default_beta = 0.0
    settings = GRPOSettings
    has_implicit_reward = False
    token_mean = True

    def check(self, config: GRPOSettings) -> None:
        expect(config, "epsilon", 0 <= config.epsilon <= 1, "a number in [0, 1]")
        high = config.epsilon_high
        expect(config, "epsilon_high", high is None or 0 <= high < float("inf"), "a finite number >= 0")

    def drops_ties(self, config: GRPOSettings) -> bool:
        """True without a KL penalty: the gradient of a group with equal rewards is then 0."""
        return config.beta == 0

    def compute(self, inputs: LossInputs, config: GRPOSettings) -> LossResult:
        assert config.beta is not None
        out = grpo_loss(
            *inputs.scored,
            inputs.columns["advantages"],
            epsilon=config.epsilon,
            epsilon_high=config.epsilon_high,
            beta=config.beta,
            num_items_in_batch=inputs.num_items,
            **inputs.perceived(config),
        )
        tokens = inputs.loss_mask.sum()
        divisor = tokens if inputs.num_items is None else inputs.num_items
        shares = {
            "kl": out.kl,
            "clip_ratio/low_mean": out.clip_low_fraction,
            "clip_ratio/high_mean": out.clip_high_fraction,
            "clip_ratio/region_mean": out.clip_fraction,
        }
        metrics = {"loss": Weighted(out.loss * divisor, tokens)}
        return result(out.loss, out, inputs, metrics | token_shares(inputs.loss_mask, shares))
