"""What the matrix units give at best: the products of a case on hidden states, for the rows that count.

Nothing else: no chunks, no softmax, no gathering of rows. The logits' memory is there already.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernels.cases import Mode
from benchmarks.kernels.head import HeadBatch, HeadCase


def bare_products(case: HeadCase, mode: Mode, batch: HeadBatch) -> list[Callable[[], Tensor]]:
    """As many products as the floor has units, in each way to hold the gradients; the fastest is the ceiling.

    The logits are left in the dtype of the hidden states, as every implementation leaves them; the gradients too, or in
    float32 where a GPU's product can (it is how a sum over chunks is kept).
    """
    hidden = batch.hidden.detach()[batch.loss_mask]
    weight = batch.weight.detach()
    logits = torch.empty(len(hidden), len(weight), dtype=hidden.dtype, device=hidden.device)
    forwards = case.units[mode] - {"nograd": 0, "frozen": 1, "full": 2}[mode]

    def products(dtype: torch.dtype) -> Tensor:
        for _ in range(forwards):
            torch.mm(hidden, weight.T, out=logits)
        if mode != "nograd":
            product(logits, weight, dtype)
        if mode == "full":
            product(logits.T, hidden, dtype)
        return logits

    dtypes = [hidden.dtype]
    if hidden.is_cuda and mode != "nograd" and hidden.dtype != torch.float32:
        dtypes.append(torch.float32)
    return [partial(products, dtype) for dtype in dtypes]


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mm(left, right) if dtype == left.dtype else torch.mm(left, right, out_dtype=dtype)
