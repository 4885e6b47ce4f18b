"""GRPO's loss of token log-probs, differentiated by its kernel."""

from torch import Tensor

from humanline_fused.autograd.logp_loss import logp_loss
from humanline_fused.layer import GRPOLoss
from humanline_kernels.grpo_loss import grpo_loss_forward


def grpo_loss(
    logp: Tensor,
    ref_logp: Tensor,
    loss_mask: Tensor,
    advantages: Tensor,
    num_items_in_batch: Tensor | None,
    *,
    epsilon: float,
    epsilon_high: float,
    beta: float,
    log_epsilon_P: float,
    log_epsilon_R: float,
) -> GRPOLoss:
    loss, metrics = logp_loss(
        grpo_loss_forward,
        logp,
        ref_logp.contiguous(),
        loss_mask.contiguous(),
        advantages,
        num_items_in_batch,
        epsilon,
        epsilon_high,
        beta,
        log_epsilon_P,
        log_epsilon_R,
    )
    return GRPOLoss(loss, *metrics.unbind())
