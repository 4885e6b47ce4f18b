"""DPO: pairs of completions (arXiv 2509.24207, section 4)."""

from dataclasses import dataclass, field
from typing import cast, get_args

from humanline_fused import validation
from humanline_fused.functional import dpo_loss
from humanline_fused.training.data.forms import PAIRS
from humanline_fused.training.objectives.metrics import Weighted, pair_metrics
from humanline_fused.training.objectives.objective import LossInputs, LossResult, Objective, result
from humanline_fused.training.objectives.settings import LossSettings, expect
from humanline_fused.types import DPOLossType


@dataclass
class DPOSettings(LossSettings):
    """Settings of DPO."""

    loss_type: str = field(
        default="sigmoid",
        metadata={"help": f"dpo: loss of a pair (TRL's names): {', '.join(get_args(DPOLossType))}."},
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "dpo: assumed share of pairs with a reversed preference, in [0, 0.5]."}
    )


class DPO(Objective):
    """``−log σ(β (R(y_w) − R(y_l)))``, or another loss of the margin (``loss_type``), averaged over pairs."""

    name = "dpo"
    form = PAIRS
    settings = DPOSettings

    def check(self, config: DPOSettings) -> None:
        validation.check_choice("loss_type", config.loss_type, get_args(DPOLossType))
        expect(config, "label_smoothing", 0 <= config.label_smoothing <= 0.5, "a number in [0, 0.5]")
        smoothed = config.loss_type == "sigmoid" or not config.label_smoothing
        expect(config, "label_smoothing", smoothed, f"0 with loss_type={config.loss_type!r}")
        reason = "with loss_type='ipo'" if config.loss_type == "ipo" else "(with 0 nothing is learnt)"
        expect(config, "beta", bool(config.beta), f"a number > 0 {reason}")

    def compute(self, inputs: LossInputs, config: DPOSettings) -> LossResult:
        assert config.beta is not None
        out = dpo_loss(
            *inputs.scored,
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            loss_type=cast(DPOLossType, config.loss_type),
            **inputs.perceived(config),
        )
        metrics = {"loss": Weighted.of(out.loss, len(out.rewards) // 2)}
        return result(out.loss, out, inputs, metrics | pair_metrics(out.rewards, inputs.sums(out.logp)))
