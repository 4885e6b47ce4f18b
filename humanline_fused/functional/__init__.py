"""The public functions: validate arguments, choose the implementation, call it. No mathematics."""

from humanline_fused.functional.dpo_loss import dpo_loss
from humanline_fused.functional.grpo_loss import grpo_loss
from humanline_fused.functional.kto_loss import kto_kl, kto_loss
from humanline_fused.functional.log_ratio import token_log_ratio
from humanline_fused.functional.token_logp import token_logp, token_logp_and_entropy

__all__ = ["dpo_loss", "grpo_loss", "kto_kl", "kto_loss", "token_log_ratio", "token_logp", "token_logp_and_entropy"]
