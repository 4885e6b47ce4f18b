"""KTO: desirable and undesirable completions (arXiv 2509.24207, section 4)."""

from dataclasses import dataclass, field

from humanline_fused.functional import kto_loss
from humanline_fused.training.data.forms import LABELS
from humanline_fused.training.objectives.metrics import Weighted, label_metrics
from humanline_fused.training.objectives.objective import LossInputs, LossResult, Objective, result
from humanline_fused.training.objectives.settings import LossSettings, expect


@dataclass
class KTOSettings(LossSettings):
    """Settings of KTO."""

    desirable_weight: float = field(default=1.0, metadata={"help": "kto: loss weight of desirable completions."})
    undesirable_weight: float = field(default=1.0, metadata={"help": "kto: loss weight of undesirable completions."})


class KTO(Objective):
    """``λ_D (1 − σ(β (R − z0)))`` or ``λ_U (1 − σ(β (z0 − R)))``, averaged over completions."""

    name = "kto"
    form = LABELS
    settings = KTOSettings
    mismatched = True

    def check(self, config: KTOSettings) -> None:
        for name in ("desirable_weight", "undesirable_weight"):
            expect(config, name, 0 <= getattr(config, name) < float("inf"), "a finite number >= 0")
        expect(config, "beta", bool(config.beta), "a number > 0 (with 0 nothing is learnt)")

    def compute(self, inputs: LossInputs, config: KTOSettings) -> LossResult:
        assert config.beta is not None
        assert inputs.kl is not None
        desirable = inputs.columns["desirable"]
        out = kto_loss(
            *inputs.scored,
            desirable,
            kl=inputs.kl,
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
            **inputs.perceived(config),
        )
        metrics = {"loss": Weighted.of(out.loss, len(desirable)), "kl": Weighted.of(out.kl, len(desirable))}
        logps = inputs.sums(out.logp)
        return result(out.loss, out, inputs, metrics | label_metrics(out.rewards, logps, desirable))
