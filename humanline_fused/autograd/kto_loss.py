"""KTO's loss of token log-probs, differentiated by its kernel."""

from torch import Tensor

from humanline_fused.autograd.logp_loss import boundaries, logp_loss
from humanline_fused.layer import SequenceLoss
from humanline_kernels.kto_loss import kto_loss_forward


def kto_loss(
    logp: Tensor,
    ref_logp: Tensor,
    loss_mask: Tensor,
    cu_seqlens: Tensor | None,
    desirable: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    log_epsilon_P: float,
    log_epsilon_R: float,
) -> SequenceLoss:
    loss, rewards, clamped = logp_loss(
        kto_loss_forward,
        logp,
        ref_logp.contiguous(),
        loss_mask.contiguous(),
        boundaries(loss_mask, cu_seqlens),
        desirable.contiguous(),
        kl.contiguous(),
        beta,
        desirable_weight,
        undesirable_weight,
        log_epsilon_P,
        log_epsilon_R,
    )
    return SequenceLoss(loss, rewards, *clamped.unbind())
