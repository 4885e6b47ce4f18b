"""DPO's losses of token log-probs, differentiated by their kernel."""

from torch import Tensor

from humanline_fused.autograd.logp_loss import boundaries, logp_loss
from humanline_fused.layer import SequenceLoss
from humanline_fused.types import DPOLossType
from humanline_kernels.dpo_loss import dpo_loss_forward


def dpo_loss(
    logp: Tensor,
    ref_logp: Tensor,
    loss_mask: Tensor,
    cu_seqlens: Tensor | None,
    *,
    beta: float,
    label_smoothing: float,
    log_epsilon_P: float,
    log_epsilon_R: float,
    loss_type: DPOLossType = "sigmoid",
) -> SequenceLoss:
    loss, rewards, clamped = logp_loss(
        dpo_loss_forward,
        logp,
        ref_logp.contiguous(),
        loss_mask.contiguous(),
        boundaries(loss_mask, cu_seqlens),
        beta,
        label_smoothing,
        log_epsilon_P,
        log_epsilon_R,
        options=(loss_type,),
    )
    return SequenceLoss(loss, rewards, *clamped.unbind())
