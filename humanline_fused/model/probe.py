"""Check before a run that the fused head gives the log-probs of the model's own logits."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from humanline_fused.functional import token_logp
from humanline_fused.model.fused_head import INSTEAD, causal_lm
from humanline_fused.scores import LMHead, Logits
from humanline_fused.targets import shift_targets
from humanline_fused.types import Impl

PROBED_TOKENS = 32


@torch.no_grad()
def probe(wrapped: nn.Module, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, impl: Impl) -> float:
    """Score the first tokens of a batch both ways with the wrapped, placed and cast model. Leaves eval mode on.

    Args:
        wrapped: the trained module.
        model: the transformers or PEFT model in it, after :func:`humanline_fused.model.fused_head.score_in_forward_`.
        input_ids, attention_mask: [B, T], int64.
        impl: the implementation.

    Returns:
        The largest difference between the log-probs, in nats.

    Raises:
        ValueError: the log-probs differ by more than rounding explains.
    """
    wrapped.eval()
    ids, attention_mask = (part[:1, :PROBED_TOKENS] for part in (input_ids, attention_mask))
    inputs = {"input_ids": ids, "attention_mask": attention_mask, "use_cache": False}
    targets = shift_targets(ids, attention_mask.bool())
    products: list[tuple[Tensor, torch.dtype]] = []
    head = causal_lm(model).get_output_embeddings()
    hook = head.register_forward_hook(lambda _, args, product: products.append((args[0], product.dtype)))
    try:
        logits = wrapped(**inputs).logits
    finally:
        hook.remove()
    hidden, dtype = products[-1]
    own = token_logp(Logits(logits), *targets, impl=impl)
    differences: list[float] = []

    def compare(scores: LMHead) -> dict[str, Tensor]:
        scores = replace(scores, hidden=hidden)  # exclude differences between two forward passes of the body
        fused = token_logp(scores, *targets, impl=impl)
        differences.append(_difference(fused, own, _tolerance(scores, dtype, logits, own)))
        return {}

    wrapped(**inputs, score=compare)
    return differences[0]


def _tolerance(scores: LMHead, dtype: torch.dtype, logits: Tensor, own: Tensor) -> float:
    """Return the largest rounding difference between two log-probs of one hidden state, in nats.

    Both ways round the product, and the model may round a scale and the three steps of a softcap. A rounding changes a
    logit by at most half an epsilon of it, and the log-prob by twice that. The error of a float32 product is that of
    its sum, which grows with the square root of its length. The log-probs themselves are float32.
    """
    roundings = 2 + (scores.scale != 1) + 3 * (scores.softcap is not None)
    length = scores.hidden.shape[-1] if dtype in (torch.float32, torch.float64) else 1
    largest = logits.where(logits.isfinite(), 0.0).abs().max().item()
    rounded = 2 * torch.finfo(torch.float32).eps * (1 + own.abs().nan_to_num().max().item())
    return roundings * torch.finfo(dtype).eps * length**0.5 * largest + rounded


def _difference(fused: Tensor, own: Tensor, tolerance: float) -> float:
    difference = (fused - own).where(fused != own, 0.0).abs().max().item()
    if not torch.allclose(fused, own, rtol=0.0, atol=tolerance, equal_nan=True):
        raise ValueError(
            f"head='fused': expected the log-probs of the model's own logits within {tolerance:.1e} nats, got a "
            f"difference of {difference:.1e}. {INSTEAD}"
        )
    return difference
