"""Where token log-probs come from."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Logits:
    """A model's output before the softmax.

    Args:
        logits: [B, T, V], bfloat16, float16, float32 or float64, any strides. Row ``[b, t]`` scores
            ``target_ids[b, t]``: shift ids and mask (:func:`humanline_fused.shift_targets`), never the logits.
    """

    logits: Tensor


@dataclass(frozen=True, eq=False)
class TokenLogp:
    """Log-probs of the targets that are already there: scored ahead, by another engine, or by code of the caller's.

    Args:
        logp: [B, T], nats. What stands where the mask is False is never read.
    """

    logp: Tensor


Scores = Logits | TokenLogp
