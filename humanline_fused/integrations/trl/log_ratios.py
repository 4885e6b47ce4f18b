"""Clamped log-ratios in place of the log-probs that TRL's losses expect."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from humanline_fused import HumanlineClamp, TokenLogp, token_log_ratio
from humanline_fused.integrations.trl.forward import ForwardPass, trl_pass


def zero_reference(labels: Tensor, **inputs: Any) -> FusedCausalLMOutput:
    """Return log-probs of 0, so that TRL's difference of log-probs is the policy's argument."""
    return FusedCausalLMOutput(log_probs=torch.zeros(labels[:, 1:].shape, device=labels.device))


class LogRatios:
    """Replaces the policy in TRL's loss; its ``log_probs`` are clamped log-ratios.

    KTO's mismatched pairs are scored by the same calls, so their tokens are clamped too. :attr:`last` and
    :attr:`loss_mask` belong to the last call, which is the one with the gradient.

    Args:
        policy: the model that TRL's loss calls.
        reference: takes a forward pass and returns the reference's log-probs, [B, T - 1].
        clamp: the bounds.
        prepare: makes a forward pass of TRL's inputs.
    """

    def __init__(
        self,
        policy: Callable[..., Any],
        reference: Callable[[ForwardPass], Tensor],
        clamp: HumanlineClamp,
        prepare: Callable[[dict[str, Any]], ForwardPass] = trl_pass,
    ) -> None:
        self.policy, self.reference, self.clamp, self.prepare = policy, reference, clamp, prepare

    def __call__(self, **inputs: Any) -> Any:
        if not inputs.get("fused_lm_head"):  # whole logits, for compute_metrics
            return self.policy(**inputs)
        forward = self.prepare(inputs)
        ref_logp = self.reference(forward)  # before the policy, whose activations stay in memory until backward
        outputs = forward(self.policy)
        assert outputs.log_probs is not None
        targets = inputs["labels"][:, 1:]
        self.loss_mask = targets != -100
        scores = TokenLogp(outputs.log_probs), TokenLogp(ref_logp)
        self.last = token_log_ratio(*scores, targets, self.loss_mask, clamp=self.clamp)
        outputs.log_probs = self.last.log_ratio
        return outputs
