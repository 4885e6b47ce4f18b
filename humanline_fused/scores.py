"""Where token log-probs come from."""

from dataclasses import KW_ONLY, dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Logits:
    """A model's output before the softmax.

    The softmax is taken of ``z = cap(scale · logits) / temperature``, ``cap(x) = softcap · tanh(x / softcap)``
    (docs/math.md, equation 1). A model that caps or scales its own logits has done so already.

    Args:
        logits: [B, T, V], bfloat16, float16, float32 or float64, any strides (other than 1 over the vocabulary costs
            a copy). Row ``[b, t]`` scores ``target_ids[b, t]``: shift ids and mask
            (:func:`humanline_fused.shift_targets`), never the logits.
        temperature: > 0, for all tokens, or [B, T], float. No gradient reaches it.
        softcap: > 0; None does not cap.
        scale: > 0.
        inplace_gradient: backward may write dlogits over the logits, and so need no memory of its own. The logits must
            be the result of another operation, not a leaf. Autograd counts it as a write: whatever else needs these
            logits for a later backward raises, and so does a second backward (not under saved-tensor hooks, which
            switch that check of autograd's off). Without a gradient nothing is written.
    """

    logits: Tensor
    _: KW_ONLY
    temperature: Tensor | float = 1.0
    softcap: float | None = None
    scale: float = 1.0
    inplace_gradient: bool = False


@dataclass(frozen=True, eq=False)
class TokenLogp:
    """Log-probs of the targets that are already there: scored ahead, by another engine, or by code of the caller's.

    Args:
        logp: [B, T], nats. What stands where the mask is False is never read.
    """

    logp: Tensor


Scores = Logits | TokenLogp
