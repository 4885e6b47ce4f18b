"""The ceiling of a case: the least work that it can do, timed in the same turns as its providers.

On logits that is their loads and stores (``traffic.py``), on hidden states the products for the rows that count: no
chunks, no softmax, no gathering of rows, and the logits' memory is there already.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.batches import HeadBatch
from benchmarks.kernels.cases import Case, Mode


def ceilings(case: Case, mode: Mode, batch: Any) -> list[Callable[[], Tensor]]:
    """Ways to do the least work; the fastest is the ceiling. Of loads and stores there are none without a GPU."""
    if case.on_hidden_states:
        return bare_products(case, mode, batch)
    if batch.logits.device.type != "cuda":
        return []
    from benchmarks.kernels.traffic import bare_traffic

    return bare_traffic(case, mode, batch)


def bare_products(case: Case, mode: Mode, batch: HeadBatch) -> list[Callable[[], Tensor]]:
    """As many products as the floor has, in each way to hold the gradients.

    The logits are left in the dtype of the hidden states, as every implementation leaves them; the gradients too, or in
    float32 where a GPU's product can (it is how a sum over chunks is kept).
    """
    hidden = batch.hidden.detach()[batch.loss_mask]
    weight = batch.weight.detach()
    logits = torch.empty(len(hidden), len(weight), dtype=hidden.dtype, device=hidden.device)
    forwards = case.products[mode] - {"nograd": 0, "frozen": 1, "full": 2}[mode]

    def products(dtype: torch.dtype) -> Tensor:
        for _ in range(forwards):
            torch.mm(hidden, weight.T, out=logits)
        if mode != "nograd":
            _product(logits, weight, dtype)
        if mode == "full":
            _product(logits.T, hidden, dtype)
        return logits

    dtypes = [hidden.dtype]
    if hidden.is_cuda and mode != "nograd" and hidden.dtype != torch.float32:
        dtypes.append(torch.float32)
    return [partial(products, dtype) for dtype in dtypes]


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mm(left, right) if dtype == left.dtype else torch.mm(left, right, out_dtype=dtype)
