"""KTO's loss of token log-probs, differentiated by its kernel."""

from torch import Tensor

from humanline_fused.autograd.logp_loss import LogpLoss
from humanline_kernels.kto_loss import kto_loss_forward


def kto_loss(
    logp: Tensor, ref_logp: Tensor, loss_mask: Tensor, desirable: Tensor, kl: Tensor, **settings: float
) -> tuple[Tensor, ...]:
    """Loss [] with a graph; detached rewards [B], clamped low and high fractions []."""
    return LogpLoss.apply(
        kto_loss_forward,
        logp.contiguous(),
        settings,
        ref_logp.contiguous(),
        loss_mask.contiguous(),
        desirable.contiguous(),
        kl.contiguous(),
    )
