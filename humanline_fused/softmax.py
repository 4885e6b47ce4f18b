"""Softmax settings (docs/math.md, equation 1), scores of rows of logits, and the interface of code that scores them."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from humanline_fused.scores import LMHead, Logits


class Softmax(NamedTuple):
    """``z = cap(scale · x) · inverse_temperature / temperature``; by default ``z = x``.

    Args:
        temperature: per token, in the dtype of log-probs, or None.
    """

    temperature: Tensor | None = None
    inverse_temperature: float = 1.0
    softcap: float | None = None
    scale: float = 1.0

    def scores(self, rows: Tensor, temperature: Tensor | float) -> Tensor:
        """z of logits x."""
        if self.softcap is None and isinstance(temperature, float):
            factor = self.scale / temperature
            return rows if factor == 1 else rows * factor
        rows = rows * self.scale
        if self.softcap is not None:
            rows = (rows / self.softcap).tanh() * self.softcap
        return rows / temperature

    def apart(self, rows: Tensor, point: Tensor, temperature: Tensor | float) -> Tensor:
        """z of logits x minus z of a point; the difference first, so that an offset of all logits takes no digits."""
        if self.softcap is None:
            return self.scores(rows - point, temperature)
        return self.scores(rows, temperature) - self.scores(point, temperature)

    def back(self, dz: Tensor, rows: Tensor, temperature: Tensor | float) -> Tensor:
        """dz · ∂z/∂x (docs/math.md, equation 15)."""
        if isinstance(temperature, Tensor):
            temperature = temperature.to(rows.dtype)
        slope = self.scale / temperature
        if self.softcap is not None:
            slope = slope * (1 - (rows * (self.scale / self.softcap)).tanh().square())
        return dz if isinstance(slope, float) and slope == 1 else dz * slope

    def temperature_of(self, index: tuple[Tensor, ...] | slice) -> Tensor | float:
        """Temperature of the tokens at ``index``: [n, 1], or one number for all."""
        if self.temperature is None:
            return 1 / self.inverse_temperature
        return self.temperature[index].reshape(-1, 1) / self.inverse_temperature


def softmax_of(source: Logits | LMHead) -> Softmax:
    """The softmax settings of a source of scores."""
    cap, scale = source.softcap, float(source.scale)
    if isinstance(source.temperature, Tensor):
        values = source.logits if isinstance(source, Logits) else source.hidden
        temperature = source.temperature.detach().to(torch.promote_types(values.dtype, torch.float32))
        # A temperature that is illegal, which no check on a GPU would see without a wait, gives NaN.
        legal = (temperature > 0) & (temperature < torch.inf)
        return Softmax(temperature.where(legal, torch.nan), 1.0, cap, scale)
    return Softmax(None, 1.0 / source.temperature, cap, scale)


class RowScores(NamedTuple):
    """Scores of n rows of logits x, [n] each, in the accumulation dtype.

    The probability of x is ``exp2((z(x) − z(point)) · log2 e − log2_total)``. z(point) and the total stay apart because
    their sum would lose digits to an offset common to all logits of a row.

    Attributes:
        logp: log-prob of the target, nats.
        entropy: nats; [0] if not asked for.
        point: the logit around which the row's sum was taken.
        log2_total: log2 of the row's sum around the point.
    """

    logp: Tensor
    entropy: Tensor
    point: Tensor
    log2_total: Tensor


class Epilogue(Protocol):
    """Scores logits [n, V] and overwrites them with their gradient. ``eager`` and ``autograd`` implement it."""

    def score_rows(self, logits: Tensor, target_ids: Tensor, softmax: Softmax, with_entropy: bool) -> RowScores:
        """Scores of the rows; all but the point are NaN where the id lies outside [0, V)."""
        ...

    def write_dlogits_(
        self,
        logits: Tensor,
        target_ids: Tensor,
        softmax: Softmax,
        scores: RowScores,
        dlogp: Tensor,
        dentropy: Tensor | None,
    ) -> None:
        """Overwrite the logits with their gradient, for gradients [n] of log-probs and entropies."""
        ...

    def score_and_write_dlogits_(self, logits: Tensor, target_ids: Tensor, softmax: Softmax) -> RowScores:
        """Both of these, without entropies and for gradients of 1: the same bits, in one pass less where that is fast.

        Classes that derive from this one inherit the two passes.
        """
        return in_two_passes(self.score_rows, self.write_dlogits_, logits, target_ids, softmax)


def in_two_passes(
    score_rows: Callable[[Tensor, Tensor, Softmax, bool], RowScores],
    write_dlogits_: Callable[[Tensor, Tensor, Softmax, RowScores, Tensor, Tensor | None], None],
    logits: Tensor,
    target_ids: Tensor,
    softmax: Softmax,
) -> RowScores:
    """:meth:`Epilogue.score_and_write_dlogits_` by the other two functions of an epilogue."""
    scores = score_rows(logits, target_ids, softmax, False)
    write_dlogits_(logits, target_ids, softmax, scores, torch.ones_like(scores.logp), None)
    return scores
