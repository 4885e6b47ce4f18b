"""Log-probs and entropies of tokens."""

from torch import Tensor

from humanline_fused import validation
from humanline_fused.dispatch import layer_for, score
from humanline_fused.scores import LMHead, Logits, Scores
from humanline_fused.tokens import Tokens
from humanline_fused.types import Impl, TokenLogpOutput


def token_logp(scores: Scores, target_ids: Tensor, loss_mask: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Log-prob of each target: ``logits[target] − logsumexp(logits)`` (docs/math.md, equation 1).

    Args:
        scores: ``Logits`` [B, T, V], ``LMHead`` [B, T, H] or ``TokenLogp`` [B, T].
        target_ids: [B, T], int64 or int32; read only where ``loss_mask`` is True.
        loss_mask: [B, T], bool: the tokens that count. Other rows are never read.
        impl: the implementation; ``"auto"`` chooses.

    Returns:
        [B, T], float32 (float64 for float64 input), nats, 0 where the mask is False, with a graph. A row that holds
        NaN, or +inf without a softcap, gives NaN.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names what was expected and what was given.
        RuntimeError: ``impl="triton"`` cannot run here.

    >>> import torch
    >>> from humanline_fused import Logits
    >>> token_logp(Logits(torch.zeros(1, 1, 4)), torch.tensor([[2]]), torch.tensor([[True]])).exp()
    tensor([[0.2500]])
    """
    validation.check_rows("scores", scores, target_ids, loss_mask)
    return score(layer_for(impl, scores), scores, Tokens(target_ids, loss_mask)).logp


def token_logp_and_entropy(
    scores: Logits | LMHead, target_ids: Tensor, loss_mask: Tensor, *, impl: Impl = "auto"
) -> TokenLogpOutput:
    """Log-prob of each target and entropy of each token's distribution, in one pass (docs/math.md, equations 1 and 12).

    Both have a graph, and share one backward pass. ``TokenLogp(out.logp)`` is a source of scores for any loss, and an
    entropy bonus can be added to that loss.

    Args:
        scores: ``Logits`` [B, T, V] or ``LMHead`` [B, T, H].
        target_ids, loss_mask, impl: as :func:`token_logp`.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`token_logp`.

    >>> import torch
    >>> from humanline_fused import Logits
    >>> out = token_logp_and_entropy(Logits(torch.zeros(1, 1, 4)), torch.tensor([[2]]), torch.tensor([[True]]))
    >>> out.entropy.exp()
    tensor([[4.]])
    """
    validation.check_rows("scores", scores, target_ids, loss_mask)
    if not isinstance(scores, Logits | LMHead):
        raise TypeError(
            f"scores: expected Logits(...) or LMHead(...), got {type(scores).__name__}: a log-prob alone has no entropy"
        )
    scored = score(layer_for(impl, scores), scores, Tokens(target_ids, loss_mask), with_entropy=True)
    return TokenLogpOutput(logp=scored.logp, entropy=scored.entropy)
