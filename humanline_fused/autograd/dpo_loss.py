"""DPO's loss of token log-probs, differentiated by its kernel."""

from torch import Tensor

from humanline_fused.autograd.logp_loss import LogpLoss
from humanline_kernels.dpo_loss import dpo_loss_forward


def dpo_loss(logp: Tensor, ref_logp: Tensor, loss_mask: Tensor, **settings: float) -> tuple[Tensor, ...]:
    """Loss [] with a graph; detached rewards [B], clamped low and high fractions []."""
    return LogpLoss.apply(dpo_loss_forward, logp.contiguous(), settings, ref_logp.contiguous(), loss_mask.contiguous())
