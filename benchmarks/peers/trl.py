"""TRL's log-probs, under HALOs' formulas.

On logits TRL gets ids and mask shifted, as ours does: its trainers slice ``logits[:, :-1]``, whose backward costs three
more passes. On hidden states it gets the rows that count picked out, as its trainers do on a GPU.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.halos import of_picked_rows, with_loss
from benchmarks.peers.installed import TRL_VERSION, installed_obstacle, missing

CHUNK = 32768
"""``trl/trainer/utils.py``, ``_CHUNKED_LOGPROB_CHUNK_SIZE``."""


@with_loss
def by_kernel(case: Any, batch: Any, logits: Tensor) -> Tensor:
    """The Triton kernel, whatever the device: its trainers' wrapper imports all that a trainer needs."""
    from trl.kernels import selective_log_softmax_and_entropy  # pyright: ignore[reportMissingImports]

    return selective_log_softmax_and_entropy(logits, batch.target_ids, 1.0, batch.loss_mask)[0]


@with_loss
def eager(case: Any, batch: Any, logits: Tensor) -> Tensor:
    from trl.trainer.utils import selective_log_softmax  # pyright: ignore[reportMissingImports]

    return selective_log_softmax(logits, batch.target_ids, row_mask=batch.loss_mask)


def on_logits(case: Any, batch: Any) -> Tensor:
    """``selective_log_softmax``, which is the Triton kernel (entropy included) on a GPU and eager PyTorch elsewhere."""
    return (by_kernel if batch.logits.is_cuda else eager)(case, batch)


@with_loss
@of_picked_rows
def on_hidden_states(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction  # pyright: ignore[reportMissingImports]

    if missing("accelerate", "datasets", "pandas"):
        _stand_in_for_trainers()
    return ChunkedLogProbFunction.apply(hidden, weight, None, ids, 1.0, min(CHUNK, len(weight)), None, 1.0, ())[0]


def _stand_in_for_trainers() -> None:
    """TRL's backward asks the trainers' module, which imports all that a trainer needs, to gather a partitioned head;
    ours is whole."""

    @contextmanager
    def maybe_gather_lm_head_ctx(*_: Any) -> Iterator[None]:
        yield

    trainers: Any = ModuleType("trl.trainer.utils")
    trainers.maybe_gather_lm_head_ctx = maybe_gather_lm_head_ctx
    sys.modules.setdefault(trainers.__name__, trainers)


def logits_obstacle(device: torch.device) -> str | None:
    needed = ("transformers",) if device.type == "cuda" else ("transformers", "accelerate", "datasets", "pandas")
    return installed_obstacle("trl", TRL_VERSION, *needed)


def hidden_states_obstacle(device: torch.device) -> str | None:
    return installed_obstacle("trl", TRL_VERSION, "transformers")


KERNEL = "kernels/logprob_entropy.py on a GPU, trainer/utils.py selective_log_softmax elsewhere"
ON_LOGITS = f"trl {TRL_VERSION}: {KERNEL}", on_logits, logits_obstacle
CHUNKED = "kernels/chunked_logprob.py ChunkedLogProbFunction, vocabulary chunks of 32768 as its trainers'"
ON_HIDDEN_STATES = f"trl {TRL_VERSION}: {CHUNKED}", on_hidden_states, hidden_states_obstacle
