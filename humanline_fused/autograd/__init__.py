"""The operations of ``eager`` by kernels and ``torch.autograd.Function``. Implements ``Layer``. Imports Triton."""

from humanline_fused.autograd.dpo_loss import dpo_loss
from humanline_fused.autograd.epilogue import score_and_write_dlogits_, score_rows, write_dlogits_
from humanline_fused.autograd.grpo_loss import grpo_loss
from humanline_fused.autograd.grpo_one_launch import grpo_one_launch
from humanline_fused.autograd.kto_loss import kto_loss
from humanline_fused.autograd.logits_loss import logits_loss
from humanline_fused.autograd.logp_loss import loss_and_derivative
from humanline_fused.autograd.token_logp import token_logp
from humanline_kernels.cache import num_programs

__all__ = [
    "dpo_loss",
    "grpo_loss",
    "grpo_one_launch",
    "kto_loss",
    "logits_loss",
    "loss_and_derivative",
    "num_programs",
    "score_and_write_dlogits_",
    "score_rows",
    "token_logp",
    "write_dlogits_",
]
