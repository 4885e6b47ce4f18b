"""Linear cross-entropies, which take the lm_head's product and the log-probs of targets in one, under HALOs' formulas.

Each gets the rows that count picked out.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.halos import of_picked_rows, with_loss
from benchmarks.peers.installed import CCE_VERSION, compile_obstacle, installed_obstacle


def _cut_cross_entropy(filter_eps: str | None) -> Callable[[Any, Any], Tensor]:
    @with_loss
    @of_picked_rows
    def value(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

        return -linear_cross_entropy(hidden, weight, ids, reduction="none", filter_eps=filter_eps)

    return value


def cce_obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "it is a Triton kernel for a GPU"
    return installed_obstacle("cut-cross-entropy", CCE_VERSION) or compile_obstacle(device)


@with_loss
@of_picked_rows
def torch_linear_cross_entropy(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return -torch.nn.functional.linear_cross_entropy(hidden, weight, ids, reduction="none", options=options)


def torch_obstacle(device: torch.device) -> str | None:
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        return None
    return f"torch {torch.__version__} has no nn.functional.linear_cross_entropy"


FILTERED = (
    f"cut-cross-entropy {CCE_VERSION}: linear_cross_entropy, reduction none, filter_eps high: a block of logits whose "
    "gradients are all below eps / 32 of the dtype (2.4e-4 in bfloat16) is left out of both gradients"
)
CCE = FILTERED, _cut_cross_entropy("high"), cce_obstacle
UNFILTERED = (
    f"cut-cross-entropy {CCE_VERSION}: linear_cross_entropy, reduction none, filter_eps None: no block is left out; "
    "gradients are added up in the dtype of the hidden states"
)
CCE_UNFILTERED = UNFILTERED, _cut_cross_entropy(None), cce_obstacle
ROUNDED = (
    f"torch {torch.__version__}: nn.functional.linear_cross_entropy, reduction none, LinearCrossEntropyOptions(); "
    "its log-probs are rounded to the dtype of the hidden states"
)
TORCH = ROUNDED, torch_linear_cross_entropy, torch_obstacle
