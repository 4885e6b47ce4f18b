"""Every operation in plain PyTorch. Implements ``Layer``. Runs anywhere; its float64 run is the tests' oracle."""

from humanline_fused.eager.derivative import loss_and_derivative
from humanline_fused.eager.dpo_loss import dpo_loss
from humanline_fused.eager.epilogue import score_and_write_dlogits_, score_rows, write_dlogits_
from humanline_fused.eager.grpo_loss import grpo_loss
from humanline_fused.eager.kto_loss import kto_loss
from humanline_fused.eager.log_ratio import clamped_log_ratio
from humanline_fused.eager.sequences import sequence_counts
from humanline_fused.eager.token_logp import token_logp

__all__ = [
    "clamped_log_ratio",
    "dpo_loss",
    "grpo_loss",
    "kto_loss",
    "loss_and_derivative",
    "score_and_write_dlogits_",
    "score_rows",
    "sequence_counts",
    "token_logp",
    "write_dlogits_",
]
