"""The ceiling of a case: the least work that it can do, timed in the same turns as its providers.

On logits that is their loads and stores (``traffic.py``), on hidden states the products for the rows that count, each
in the fastest way that was seen: no chunks, no softmax, no gathering of rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.batches import HeadBatch
from benchmarks.kernels.cases import Case, Mode
from benchmarks.peers.cute import QUACK_HERE, quack_product


@dataclass(frozen=True)
class Least:
    """A part of the least work that a case has to do ``times`` times; the fastest of its ways is the ceiling."""

    ways: list[Callable[[], Tensor]]
    times: int = 1


def ceilings(case: Case, mode: Mode, batch: Any) -> list[Least]:
    """The parts of the least work. Of loads and stores there are none without a GPU."""
    if case.on_hidden_states:
        return bare_products(case, mode, batch)
    if batch.logits.device.type != "cuda":
        return []
    from benchmarks.kernels.traffic import bare_traffic

    return [Least(bare_traffic(case, mode, batch))]


def bare_products(case: Case, mode: Mode, batch: HeadBatch) -> list[Least]:
    """As many products as the floor has, each by cuBLAS and, where it is installed, by QuACK.

    The logits are left in the dtype of the hidden states, as every implementation leaves them; the gradients too, or in
    float32 where a GPU's product can (it is how a sum over chunks is kept).
    """
    hidden = batch.hidden.detach()[batch.loss_mask]
    weight = batch.weight.detach()
    logits = hidden @ weight.T
    forwards = case.products[mode] - {"nograd": 0, "frozen": 1, "full": 2}[mode]
    by_quack = QUACK_HERE(hidden.device) is None

    def products(left: Tensor, right: Tensor, dtypes: Sequence[torch.dtype]) -> list[Callable[[], Tensor]]:
        by = [_product, quack_product] if by_quack else [_product]
        return [partial(product, left, right, dtype) for dtype in dtypes for product in by]

    least = [Least(products(hidden, weight.T, [hidden.dtype]), forwards)]
    dtypes = [hidden.dtype]
    if hidden.is_cuda and hidden.dtype != torch.float32:
        dtypes.append(torch.float32)
    if mode != "nograd":
        least.append(Least(products(logits, weight, dtypes)))
    if mode == "full":
        least.append(Least(products(logits.T, hidden, dtypes)))
    return least


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mm(left, right) if dtype == left.dtype else torch.mm(left, right, out_dtype=dtype)
