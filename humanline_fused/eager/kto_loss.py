"""KTO on clamped log-ratios (docs/math.md, equations 6 to 8)."""

from torch import Tensor

from humanline_fused.eager.log_ratio import clamped_log_ratio
from humanline_fused.eager.sequences import sequence_counts, sequence_sum
from humanline_fused.layer import SequenceLoss
from humanline_fused.validation import nan_if_illegal


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
    ratio = clamped_log_ratio(logp, ref_logp, loss_mask, log_epsilon_P, log_epsilon_R)
    rewards = beta * sequence_sum(ratio.clamped, cu_seqlens)
    reference_point = beta * kl.detach()
    losses = (desirable_weight * (1 - (rewards - reference_point).sigmoid())).where(
        desirable, undesirable_weight * (1 - (reference_point - rewards).sigmoid())
    )

    counts = sequence_counts(loss_mask, cu_seqlens)
    loss = losses.where(counts, 0.0).sum() / counts.sum().clamp(min=1)
    loss = nan_if_illegal(loss, cu_seqlens, loss_mask.shape[1])
    num_tokens = loss_mask.sum().clamp(min=1)
    return SequenceLoss(loss, rewards.detach(), ratio.low / num_tokens, ratio.high / num_tokens)
