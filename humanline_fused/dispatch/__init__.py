"""From sources of scores to log-probs and losses: chooses the layer that computes, and the number of passes."""

from humanline_fused.dispatch.passes import grpo_in_one_launch, loss_of, per_token, score, score_both
from humanline_fused.dispatch.selection import accumulation_dtype, layer_for

__all__ = ["accumulation_dtype", "grpo_in_one_launch", "layer_for", "loss_of", "per_token", "score", "score_both"]
