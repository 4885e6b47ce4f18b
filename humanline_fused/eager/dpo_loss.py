"""DPO's losses of pairs on clamped log-ratios (docs/math.md, equations 4 to 5c).

They differ in the link alone: the loss of one pair as a function of its margin.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid

from humanline_fused.eager.log_ratio import clamped_log_ratio
from humanline_fused.eager.sequences import sequence_lengths, sequence_sum
from humanline_fused.layer import SequenceLoss
from humanline_fused.types import DPOLossType
from humanline_fused.validation import nan_if_illegal


class Link(NamedTuple):
    """
    Attributes:
        losses: of margins [P], ``beta`` and ``label_smoothing``.
        per_token: whether R(y) is divided by the number of tokens that count.
    """

    losses: Callable[[Tensor, float, float], Tensor]
    per_token: bool


def _sigmoid(margin: Tensor, beta: float, label_smoothing: float) -> Tensor:
    losses = -(1 - label_smoothing) * logsigmoid(margin)
    return losses - label_smoothing * logsigmoid(-margin) if label_smoothing else losses


def _squared(margin: Tensor, beta: float, label_smoothing: float) -> Tensor:
    return ((margin - 0.5) / beta).square()


def _hinge(margin: Tensor, beta: float, label_smoothing: float) -> Tensor:
    missing = 1 - margin
    # At the kink the slope is 0, as torch.relu's; NaN stays NaN.
    return missing.where(~(missing <= 0), 0.0)


LINKS: dict[DPOLossType, Link] = {
    "sigmoid": Link(_sigmoid, per_token=False),
    "ipo": Link(_squared, per_token=True),
    "hinge": Link(_hinge, per_token=False),
    "sigmoid_norm": Link(_sigmoid, per_token=True),
}


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
    link = LINKS[loss_type]
    ratio = clamped_log_ratio(logp, ref_logp, loss_mask, log_epsilon_P, log_epsilon_R)
    rewards = beta * sequence_sum(ratio.clamped, cu_seqlens)
    lengths = sequence_lengths(loss_mask, cu_seqlens)
    scores = rewards / lengths.clamp(min=1) if link.per_token else rewards
    num_pairs = len(rewards) // 2
    losses = link.losses(scores[:num_pairs] - scores[num_pairs:], beta, label_smoothing)

    counts = (lengths > 0).view(2, num_pairs).any(0)
    loss = losses.where(counts, 0.0).sum() / counts.sum().clamp(min=1)
    loss = nan_if_illegal(loss, cu_seqlens, loss_mask.shape[1])
    num_tokens = loss_mask.sum().clamp(min=1)
    return SequenceLoss(loss, rewards.detach(), ratio.low / num_tokens, ratio.high / num_tokens)
