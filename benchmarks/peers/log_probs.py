"""Log-probs of others, under HALOs' formulas: TRL's, cut-cross-entropy's and torch's.

On logits TRL gets ids and mask shifted, as ours does: its trainers slice ``logits[:, :-1]``, whose backward costs three
more passes. On hidden states everybody gets the rows that count picked out, as TRL's trainers do on a GPU.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.halos import of_picked_rows, with_loss
from benchmarks.peers.installed import CCE_VERSION, TRL_VERSION, installed_obstacle, missing, needs

TRL_CHUNK = 32768  # trl/trainer/utils.py, _CHUNKED_LOGPROB_CHUNK_SIZE
OF_TRAINERS = "accelerate", "datasets", "pandas"  # modules that trl.trainer imports


@with_loss
def trl_by_kernel(case: Any, batch: Any, logits: Tensor) -> Tensor:
    """The Triton kernel, whatever the device: its trainers' wrapper imports all that a trainer needs."""
    from trl.kernels import selective_log_softmax_and_entropy  # pyright: ignore[reportMissingImports]

    return selective_log_softmax_and_entropy(logits, batch.target_ids, 1.0, batch.loss_mask)[0]


@with_loss
def trl_eager(case: Any, batch: Any, logits: Tensor) -> Tensor:
    from trl.trainer.utils import selective_log_softmax  # pyright: ignore[reportMissingImports]

    return selective_log_softmax(logits, batch.target_ids, row_mask=batch.loss_mask)


def trl_on_logits(case: Any, batch: Any) -> Tensor:
    """``selective_log_softmax``, which is the Triton kernel (entropy included) on a GPU and eager PyTorch elsewhere."""
    return (trl_by_kernel if batch.logits.is_cuda else trl_eager)(case, batch)


@with_loss
@of_picked_rows
def trl_on_hidden_states(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction  # pyright: ignore[reportMissingImports]

    if missing(*OF_TRAINERS):
        _stand_in_for_trainers()
    return ChunkedLogProbFunction.apply(hidden, weight, None, ids, 1.0, min(TRL_CHUNK, len(weight)), None, 1.0, ())[0]


def _stand_in_for_trainers() -> None:
    """TRL's backward asks the trainers' module, which imports all that a trainer needs, to gather a partitioned head;
    ours is whole."""

    @contextmanager
    def maybe_gather_lm_head_ctx(*_: Any) -> Iterator[None]:
        yield

    trainers: Any = ModuleType("trl.trainer.utils")
    trainers.maybe_gather_lm_head_ctx = maybe_gather_lm_head_ctx
    sys.modules.setdefault(trainers.__name__, trainers)


def trl_obstacle(device: torch.device) -> str | None:
    needed = ("transformers",) if device.type == "cuda" else ("transformers", *OF_TRAINERS)
    return installed_obstacle("trl", TRL_VERSION, *needed)


KERNEL = "kernels/logprob_entropy.py on a GPU, trainer/utils.py selective_log_softmax elsewhere"
TRL = f"trl {TRL_VERSION}: {KERNEL}"
CHUNKED = "kernels/chunked_logprob.py ChunkedLogProbFunction, vocabulary chunks of 32768 as its trainers'"
TRL_CHUNKED = f"trl {TRL_VERSION}: {CHUNKED}", trl_on_hidden_states, needs("trl", TRL_VERSION, "transformers")


def _cut_cross_entropy(filter_eps: str | None) -> Callable[[Any, Any], Tensor]:
    @with_loss
    @of_picked_rows
    def value(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

        return -linear_cross_entropy(hidden, weight, ids, reduction="none", filter_eps=filter_eps)

    return value


@with_loss
@of_picked_rows
def torch_linear_cross_entropy(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return -torch.nn.functional.linear_cross_entropy(hidden, weight, ids, reduction="none", options=options)


def torch_obstacle(device: torch.device) -> str | None:
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        return None
    return f"torch {torch.__version__} has no nn.functional.linear_cross_entropy"


REDUCED = f"cut-cross-entropy {CCE_VERSION}: linear_cross_entropy, reduction none"
FILTERED = (
    f"{REDUCED}, filter_eps high: a block of logits whose "
    "gradients are all below eps / 32 of the dtype (2.4e-4 in bfloat16) is left out of both gradients"
)
UNFILTERED = (
    f"{REDUCED}, filter_eps None: no block is left out; gradients are added up in the dtype of the hidden states"
)
CCE_OBSTACLE = needs("cut-cross-entropy", CCE_VERSION, gpu="it is a Triton kernel for a GPU", compiler=True)
CCE = FILTERED, _cut_cross_entropy("high"), CCE_OBSTACLE
CCE_UNFILTERED = UNFILTERED, _cut_cross_entropy(None), CCE_OBSTACLE
ROUNDED = (
    f"torch {torch.__version__}: nn.functional.linear_cross_entropy, reduction none, LinearCrossEntropyOptions(); "
    "its log-probs are rounded to the dtype of the hidden states"
)
TORCH = ROUNDED, torch_linear_cross_entropy, torch_obstacle
