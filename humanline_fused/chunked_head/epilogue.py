"""What the driver of the chunks asks of whoever scores their rows."""

from typing import NamedTuple, Protocol

from torch import Tensor

from humanline_fused.softmax import Softmax


class RowScores(NamedTuple):
    """Of rows of logits x, [n] each, in the accumulation's dtype; ``entropy`` [0] if not asked for; both in nats.

    The probability of x is ``exp2((z(x) − z(point)) · log2 e − log2_total)``: z(point) and total are kept apart, so
    that an offset common to all logits of a row takes no digits.
    """

    logp: Tensor
    entropy: Tensor
    point: Tensor
    log2_total: Tensor


class Epilogue(Protocol):
    """Who scores logits [n, V] and turns them into their gradient: a module or object with these two functions."""

    def score_rows(
        self, logits: Tensor, target_ids: Tensor, softmax: Softmax, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """:class:`RowScores`, all but the point NaN where the id lies outside [0, V)."""
        ...

    def write_dlogits_(
        self,
        logits: Tensor,
        target_ids: Tensor,
        softmax: Softmax,
        scores: tuple[Tensor, Tensor, Tensor, Tensor],
        dlogp: Tensor,
        dentropy: Tensor | None,
    ) -> None:
        """The gradient, in the place of the logits, for gradients [n] of log-probs and entropies."""
        ...
