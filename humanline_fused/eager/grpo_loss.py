"""GRPO on clamped log-ratios, with PPO's clip and the k3 penalty (docs/math.md, equations 9 to 11)."""

import torch
from torch import Tensor

from humanline_fused.eager.k3 import k3_of
from humanline_fused.eager.log_ratio import clamped_log_ratio
from humanline_fused.layer import GRPOLoss


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
    log_ratio = clamped_log_ratio(logp, ref_logp, loss_mask, log_epsilon_P, log_epsilon_R)
    # Equation 9. Where the clipped term is the smaller one, the ratio enters neither the value nor the gradient: beyond
    # 88 nats it is infinite in float32, and 0 · ∞ would be NaN.
    value = log_ratio.clamped.detach().exp()
    too_low, too_high = value < 1 - epsilon, value > 1 + epsilon_high
    stopped = ((advantages < 0) & too_low) | ((advantages >= 0) & too_high)
    ratio = log_ratio.clamped.where(~stopped, 0.0).exp()
    losses = -(advantages * value.clamp(1 - epsilon, 1 + epsilon_high).where(stopped, ratio))
    # Humanline's clamp bounds the policy gradient only: k3 sees the raw log-ratio and its gradient always passes.
    k3 = k3_of(log_ratio.raw if beta else log_ratio.raw.detach())
    if beta:
        losses = losses + beta * k3

    num_tokens = loss_mask.sum().clamp(min=1)
    loss = losses.where(loss_mask, 0.0).sum() / (num_tokens if num_items_in_batch is None else num_items_in_batch)
    with torch.no_grad():
        clip_low = (loss_mask & (advantages < 0) & too_low).sum()
        clip_high = (loss_mask & (advantages > 0) & too_high).sum()
    return GRPOLoss(
        loss,
        kl=k3.detach().sum() / num_tokens,
        clip_low_fraction=clip_low / num_tokens,
        clip_high_fraction=clip_high / num_tokens,
        clamped_low_fraction=log_ratio.low / num_tokens,
        clamped_high_fraction=log_ratio.high / num_tokens,
    )
