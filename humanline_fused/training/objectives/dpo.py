"""DPO: pairs of completions (arXiv 2509.24207, section 4)."""

from dataclasses import dataclass, field

from humanline_fused.eager.sequences import sequence_sum
from humanline_fused.functional import dpo_loss
from humanline_fused.training.data.forms import PAIRS
from humanline_fused.training.objectives.metrics import Weighted, pair_metrics
from humanline_fused.training.objectives.objective import (
    LossInputs,
    LossResult,
    LossSettings,
    Objective,
    expect,
    result,
)


@dataclass
class DPOSettings(LossSettings):
    """Settings of DPO."""

    label_smoothing: float = field(
        default=0.0, metadata={"help": "dpo: share of pairs whose preference is the wrong way round, in [0, 0.5]."}
    )


class DPO(Objective):
    """``−log σ(β (R(y_w) − R(y_l)))``, mean over pairs."""

    name = "dpo"
    form = PAIRS
    settings = DPOSettings

    def check(self, config: DPOSettings) -> None:
        expect(config, "label_smoothing", 0 <= config.label_smoothing <= 0.5, "a number in [0, 0.5]")

    def compute(self, inputs: LossInputs, config: DPOSettings) -> LossResult:
        assert config.beta is not None
        out = dpo_loss(
            *inputs.scored,
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            clamp=config.humanline_clamp,
            impl=config.impl,
        )
        metrics = {"loss": Weighted.of(out.loss, len(out.rewards) // 2)}
        return result(out.loss, out, inputs, metrics | pair_metrics(out.rewards, sequence_sum(out.logp, None)))
