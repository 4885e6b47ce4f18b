"""Options of a loss in the trainer: an entropy bonus, and GRPO's gradient in one launch."""

from dataclasses import replace

from torch import Tensor

from humanline_fused.scores import TokenLogp
from humanline_fused.training.objectives.metrics import Weighted
from humanline_fused.training.objectives.objective import LossInputs, LossResult
from humanline_fused.training.whole_logits import WholeLogits

ENTROPY = "humanline/entropy"
"""Metric: the policy's mean entropy over the tokens that count, nats, at the temperature of the loss."""


def with_entropy(result: LossResult, entropy: Tensor, num_items: Tensor | None, coefficient: float) -> LossResult:
    """Return a loss with its entropy as a metric, and in training with its bonus.

    Args:
        result: the loss without the bonus.
        entropy: [1, n], nats, of the policy at the tokens that count, with a graph.
        num_items: [], the divisor that makes a sum over tokens their mean over the optimizer step; None in evaluation,
            which has no bonus.
        coefficient: weight of the bonus: ``loss − coefficient · Σ_t entropy_t / num_items``.
    """
    total = entropy.sum()
    loss = result.loss
    if coefficient and num_items is not None:
        loss = loss - coefficient * total / num_items
    metric = Weighted(total.detach().float(), entropy.new_full((), entropy.numel()))
    return replace(result, loss=loss, metrics={**result.metrics, ENTROPY: metric})


def of_whole_logits(inputs: LossInputs, whole: WholeLogits) -> LossInputs:
    """Return the inputs of a loss on padded rows, a sequence in each, whose logits stay where they are.

    Args:
        inputs: packed tokens; their policy is not read.
        whole: the logits.
    """
    ids, mask = whole.targets()
    reference = TokenLogp(whole.spread(inputs.reference.logp))
    return replace(inputs, policy=whole.scores, reference=reference, target_ids=ids, loss_mask=mask, cu_seqlens=None)


def packed_again(result: LossResult, whole: WholeLogits) -> LossResult:
    """Return the result of a loss on :func:`of_whole_logits` with packed log-probs."""
    return replace(result, logp=whole.gathered(result.logp), ref_logp=whole.gathered(result.ref_logp))
