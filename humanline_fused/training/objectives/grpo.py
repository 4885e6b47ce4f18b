"""GRPO: groups of completions with rewards (arXiv 2509.24207, section 4)."""

from dataclasses import dataclass, field

from humanline_fused.functional import grpo_loss
from humanline_fused.scores import Logits
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
    one_launch: bool = field(
        default=False,
        metadata={
            "help": "grpo: permit kernels to compute the gradient together with the loss, in 3 passes over the logits "
            "instead of 4. Needs head=logits and the clamp."
        },
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
        if config.one_launch:
            logits = getattr(config, "head", "logits") == "logits"
            expect(config, "one_launch", logits, "False with head='fused', which has no logits")
            expect(
                config, "one_launch", config.perception == "clamp", "False with sampling, which scores before the loss"
            )
            expect(config, "one_launch", not config.takes_entropy, "False with entropy_coef or log_entropy")

    def drops_ties(self, config: GRPOSettings) -> bool:
        """True without a KL penalty or an entropy bonus: the gradient of a group with equal rewards is then 0."""
        return config.beta == 0 and config.entropy_coef == 0

    def compute(self, inputs: LossInputs, config: GRPOSettings) -> LossResult:
        assert config.beta is not None
        num_items, parts = inputs.num_items, 1
        one_launch = False
        if config.one_launch and isinstance(inputs.policy, Logits) and num_items is not None:
            one_launch = True  # the trainer divides the loss by the accumulation, so that the kernels' grad_output is 1
            parts = getattr(config, "gradient_accumulation_steps", 1)
            num_items = num_items * parts
        out = grpo_loss(
            *inputs.scored,
            inputs.columns["advantages"],
            epsilon=config.epsilon,
            epsilon_high=config.epsilon_high,
            beta=config.beta,
            num_items_in_batch=num_items,
            one_launch=one_launch,
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
        loss = out.loss * parts
        metrics = {"loss": Weighted(loss * divisor, tokens)}
        return result(loss, out, inputs, metrics | token_shares(inputs.loss_mask, shares))
