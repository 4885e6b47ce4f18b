"""Humanline preference losses (arXiv 2509.24207): fused, exact, easy.

>>> from humanline_fused import HumanlineClamp, Logits, TokenLogp, dpo_loss
"""

from humanline_fused.functional import (
    dpo_loss,
    grpo_loss,
    kto_kl,
    kto_loss,
    token_log_ratio,
    token_logp,
    token_logp_and_entropy,
)
from humanline_fused.impl import choose_impl
from humanline_fused.scores import LMHead, Logits, TokenLogp
from humanline_fused.targets import shift_targets
from humanline_fused.types import (
    DPOOutput,
    GRPOOutput,
    HumanlineClamp,
    HumanlineSampling,
    KTOOutput,
    TokenLogpOutput,
    TokenLogRatioOutput,
)

__version__ = "0.1.0"

__all__ = [
    "DPOOutput",
    "GRPOOutput",
    "HumanlineClamp",
    "HumanlineSampling",
    "KTOOutput",
    "LMHead",
    "Logits",
    "TokenLogRatioOutput",
    "TokenLogp",
    "TokenLogpOutput",
    "__version__",
    "choose_impl",
    "dpo_loss",
    "grpo_loss",
    "kto_kl",
    "kto_loss",
    "shift_targets",
    "token_log_ratio",
    "token_logp",
    "token_logp_and_entropy",
]
