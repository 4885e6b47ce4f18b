"""Gradients from products: scaled once, rounded once."""

from typing import NamedTuple

import torch
from torch import Tensor

from humanline_fused.chunked_head.products import add_outer, column_sums, product
from humanline_fused.chunked_head.shards import Shards
from humanline_fused.chunked_head.work import Work


def refuse_double_backward() -> None:
    """Called first in every backward: grad mode is on there only under ``create_graph=True``."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "double backward: the gradients of an LMHead cannot be differentiated again (create_graph=True); "
            "expected a plain backward, or Logits(...) and impl='eager'"
        )


class HeadGradients(NamedTuple):
    """Gradients of the policy's tensors; None where none is needed."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class HeadTotals:
    """Gradients of weight and bias, summed over chunks in the accumulation dtype; None where none is needed.

    The first chunk writes the weight's gradient: zeros to add to would cost two more passes over [V, H].
    """

    def __init__(self, work: Work, weight: Tensor) -> None:
        self._weight = weight.new_empty(weight.shape, dtype=work.accumulation) if work.needs.weight else None
        self.bias = weight.new_zeros(len(weight), dtype=work.accumulation) if work.needs.bias else None
        self._is_empty = True

    def add(self, dlogits: Tensor, hidden: Tensor, coefficient: Tensor) -> None:
        if self._weight is not None:
            add_outer(self._weight, dlogits, hidden, coefficient, beta=0 if self._is_empty else 1)
        if self.bias is not None:
            self.bias += column_sums(dlogits, coefficient)
        self._is_empty = False

    def finished_weight(self) -> Tensor | None:
        """The weight's gradient, of zeros if nothing was added."""
        if self._is_empty and self._weight is not None:
            self._weight.zero_()
        return self._weight


def product_with_weight(work: Work, dlogits: Tensor, weight: Tensor) -> Tensor:
    """dlogits · weight [n, H], over the whole vocabulary, in the accumulation dtype."""
    total = product(dlogits, weight.detach().to(work.dtype))
    if isinstance(work.epilogue, Shards):
        work.epilogue.add_up(total)
    return total


def hidden_gradient(total: Tensor, coefficient: Tensor, index: Tensor, hidden: Tensor) -> Tensor:
    """[B, T, H]: coefficient ⊙ total at the rows ``index``, 0 elsewhere."""
    gradient = hidden.new_zeros(hidden.shape).flatten(0, 1)
    gradient[index] = _scaled(total, coefficient[:, None], hidden.dtype)
    return gradient.view(hidden.shape)


def weight_gradient(work: Work, total: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """``factor`` · total in the weight's dtype, out of place; with ``main_grad``, added to it instead."""
    if work.main_grad is None:
        return total.to(dtype) if factor is None else _scaled(total, factor, dtype)
    if factor is None:
        work.main_grad.add_(total)
    else:
        work.main_grad.addcmul_(total, factor.to(total.dtype))
    return None


def weight_gradient_of_chunk(
    work: Work, dlogits: Tensor, hidden: Tensor, coefficient: Tensor, weight: Tensor
) -> Tensor | None:
    """The weight's gradient where one chunk holds all rows, without an accumulator."""
    if work.main_grad is not None:
        add_outer(work.main_grad, dlogits, hidden, coefficient)
        return None
    if weight.dtype == dlogits.dtype != torch.float16:
        return dlogits.T @ (hidden * coefficient[:, None]).to(weight.dtype)
    total = weight.new_empty(weight.shape, dtype=work.accumulation)
    return add_outer(total, dlogits, hidden, coefficient, beta=0).to(weight.dtype)


def _scaled(total: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mul(total, factor.to(total.dtype), out=torch.empty_like(total, dtype=dtype))
