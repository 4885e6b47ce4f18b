"""DPO on clamped log-ratios (docs/math.md, equations 4 and 5)."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from humanline_fused.eager.log_ratio import clamped_log_ratio
from humanline_fused.eager.sequences import sequence_counts, sequence_sum
from humanline_fused.layer import SequenceLoss


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
) -> SequenceLoss:
    ratio = clamped_log_ratio(logp, ref_logp, loss_mask, log_epsilon_P, log_epsilon_R)
    rewards = beta * sequence_sum(ratio.clamped, cu_seqlens)
    num_pairs = rewards.shape[0] // 2
    margin = rewards[:num_pairs] - rewards[num_pairs:]
    losses = -(1 - label_smoothing) * logsigmoid(margin)
    if label_smoothing:
        losses = losses - label_smoothing * logsigmoid(-margin)

    counts = sequence_counts(loss_mask, cu_seqlens).view(2, num_pairs).any(0)
    loss = losses.where(counts, 0.0).sum() / counts.sum().clamp(min=1)
    num_tokens = loss_mask.sum().clamp(min=1)
    return SequenceLoss(loss, rewards.detach(), ratio.low / num_tokens, ratio.high / num_tokens)
