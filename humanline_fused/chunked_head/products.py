"""Matrix products with float32 sums (float64 for float64 factors), for factors of any dtype."""

from typing import Literal

import torch
from torch import Tensor

Beta = Literal[0, 1]
"""Factor of the old total in a sum; with 0 the total is written and never read, so it may be uninitialised."""

SLICE_BYTES = 2**24
"""Size of the part of a factor that is converted to float32 at once, on a CPU, for factors in half precision."""


def float32_or_wider(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def write_logits(logits: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """``logits`` [n, V] = hidden [n, H] · weightᵀ + bias. The dtype of ``logits`` is the factors' or float32."""
    if logits.dtype != hidden.dtype:
        add_product(logits, hidden, weight.T, beta=0)
        if bias is not None:
            logits += bias
    elif bias is None:
        torch.mm(hidden, weight.T, out=logits)
    else:
        torch.addmm(bias, hidden, weight.T, out=logits)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a · b, in the accumulation dtype."""
    dtype = float32_or_wider(a.dtype)
    if a.dtype == dtype:
        return a @ b
    if a.is_cuda:
        return torch.ops.aten.mm.dtype(a, b, dtype)
    return add_product(a.new_empty(a.shape[0], b.shape[1], dtype=dtype), a, b, beta=0)


def add_product(total: Tensor, a: Tensor, b: Tensor, beta: Beta = 1) -> Tensor:
    """``total`` = beta · total + a · b; ``total`` is in the accumulation dtype."""
    if a.dtype == total.dtype:
        return total.addmm_(a, b, beta=beta)
    if a.is_cuda:
        return torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, beta=beta, out=total)
    size = max(1, SLICE_BYTES // (total.itemsize * max(*total.shape, 1)))
    for columns, rows in zip(a.split(size, 1), b.split(size, 0), strict=True):
        total.addmm_(columns.to(total.dtype), rows.to(total.dtype), beta=beta)
        beta = 1
    return total


def add_outer(total: Tensor, dlogits: Tensor, hidden: Tensor, coefficient: Tensor, beta: Beta = 1) -> Tensor:
    """``total`` [V, H] = beta · total + dlogitsᵀ · (coefficient ⊙ hidden).

    A coefficient scales H numbers of a row, not V.

    Coefficients can be smaller than 6e-8, the smallest number in float16. There they are divided by a power of two
    before the product, and the product is multiplied by it.
    """
    rows = hidden * coefficient[:, None]
    if hidden.dtype == torch.float16 and not hidden.is_cuda:
        return add_product(total, dlogits.T, rows, beta)  # converts both factors to float32
    if hidden.dtype != torch.float16:
        return add_product(total, dlogits.T, rows.to(hidden.dtype), beta)
    unit = _power_of_two(coefficient)
    rows = (rows / unit).to(hidden.dtype)
    size = max(1, 2**28 // (total.itemsize * total.shape[1]))
    for part, columns in zip(total.split(size, 0), dlogits.split(size, 1), strict=True):
        gradient = product(columns.T, rows)
        if beta:
            part.addcmul_(gradient, unit)
        else:
            torch.mul(gradient, unit, out=part)
    return total


def column_sums(dlogits: Tensor, coefficient: Tensor) -> Tensor:
    """Σ over rows of coefficient · dlogits, [V], in the accumulation dtype."""
    if dlogits.dtype == coefficient.dtype:
        return dlogits.T @ coefficient
    unit = _power_of_two(coefficient)
    scaled = coefficient / unit
    high = scaled.to(dlogits.dtype)
    low = (scaled - high).to(dlogits.dtype)  # the rounding error of ``high``
    return product(dlogits.T, torch.stack([high, low], 1)).sum(1) * unit


def _power_of_two(coefficient: Tensor) -> Tensor:
    """Largest power of two ≤ max |coefficient|, [], without a wait for the device; 1 if all are 0."""
    largest = coefficient.abs().amax() if coefficient.numel() else coefficient.new_zeros(())
    return torch.where((largest > 0) & largest.isfinite(), largest.log2().floor().exp2(), 1.0)
