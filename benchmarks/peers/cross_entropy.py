"""The lm_head's product and the loss on it, as others compute them without [B, T, V] logits.

TRL, cut-cross-entropy and torch give log-probs of targets; the losses around them are HALOs' formulas, and each gets
the rows that count picked out, as TRL's trainers do on a GPU. Liger gives whole losses, which know no clamp, and
multiplies every row.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.head import HeadBatch, HeadCase
from benchmarks.peers.halos import loss_on_log_probs
from benchmarks.peers.installed import (
    CCE_VERSION,
    LIGER_VERSION,
    TRL_VERSION,
    compile_obstacle,
    installed_obstacle,
    missing,
)

TRL = (
    f"trl {TRL_VERSION}: kernels/chunked_logprob.py ChunkedLogProbFunction, vocabulary chunks of 32768 as its trainers'"
)
LIGER = (
    f"liger-kernel {LIGER_VERSION}: chunked_loss/dpo_loss.py LigerFusedLinearDPOLoss, "
    "chunked_loss/grpo_loss.py LigerFusedLinearGRPOLoss; compiled where there is a compiler"
)
CCE = (
    f"cut-cross-entropy {CCE_VERSION}: linear_cross_entropy, reduction none, filter_eps high: a block of logits whose "
    "gradients are all below eps / 32 of the dtype (2.4e-4 in bfloat16) is left out of both gradients"
)
CCE_UNFILTERED = (
    f"cut-cross-entropy {CCE_VERSION}: linear_cross_entropy, reduction none, filter_eps None: no block is left out; "
    "gradients are added up in the dtype of the hidden states"
)
TORCH = (
    f"torch {torch.__version__}: nn.functional.linear_cross_entropy, reduction none, LinearCrossEntropyOptions(); "
    "its log-probs are rounded to the dtype of the hidden states"
)

TRL_CHUNK = 32768
"""``trl/trainer/utils.py``, ``_CHUNKED_LOGPROB_CHUNK_SIZE``."""

LogProbs = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of hidden states [n, H], weight [V, H] and ids [n]: [n], nats."""


def loss_on(log_probs: LogProbs, case: HeadCase, batch: HeadBatch) -> Tensor:
    """The case's value from somebody's log-probs of the rows that count."""
    mask = batch.loss_mask

    def scored(hidden: Tensor, weight: Tensor) -> Tensor:
        logp = log_probs(hidden[mask], weight, batch.target_ids[mask])
        return torch.zeros_like(mask, dtype=logp.dtype).masked_scatter(mask, logp)

    logp = scored(batch.hidden, batch.weight)
    if not case.has_reference:
        return logp
    ref_logp = batch.ref_logp
    if not case.given:
        with torch.no_grad():
            ref_logp = scored(batch.ref_hidden, batch.ref_weight)
    return loss_on_log_probs(case, logp, ref_logp, batch)


def trl(case: HeadCase, batch: HeadBatch) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction  # pyright: ignore[reportMissingImports]

    if missing("accelerate", "datasets", "pandas"):
        _stand_in_for_trainers()

    def log_probs(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        chunk = min(TRL_CHUNK, len(weight))
        return ChunkedLogProbFunction.apply(hidden, weight, None, ids, 1.0, chunk, None, 1.0, ())[0]

    return loss_on(log_probs, case, batch)


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
    needed = missing("transformers")
    return installed_obstacle("trl", TRL_VERSION) or (f"it needs {', '.join(needed)}" if needed else None)


def liger(case: HeadCase, batch: HeadBatch) -> Tensor:
    from liger_kernel.chunked_loss import (  # pyright: ignore[reportMissingImports]
        LigerFusedLinearDPOLoss,
        LigerFusedLinearGRPOLoss,
    )

    compiled, ids, mask = compile_obstacle(batch.hidden.device) is None, batch.target_ids, batch.loss_mask
    if case.operation == "dpo":
        dpo = LigerFusedLinearDPOLoss(beta=case.settings["beta"], compiled=compiled)
        targets = ids.masked_fill(~mask, dpo.ignore_index)
        reference = {"ref_input": batch.ref_hidden, "ref_weight": batch.ref_weight}
        return dpo(batch.weight, batch.hidden, targets, **reference)[0]
    epsilon = case.settings["epsilon"]
    grpo = LigerFusedLinearGRPOLoss(
        beta=case.settings["beta"],
        compiled=compiled,
        epsilon_low=epsilon,
        epsilon_high=epsilon,
        loss_type="bnpo",  # the mean over tokens
    )
    reference = {"ref_per_token_logps": batch.ref_logp, "old_per_token_logps": batch.ref_logp}  # the synced reference
    return grpo(batch.hidden, batch.weight, ids, mask, batch.advantages, **reference)[0]


def liger_obstacle(device: torch.device) -> str | None:
    """Plain PyTorch, which runs anywhere; but the package imports Triton."""
    needed = missing("triton")
    return installed_obstacle("liger-kernel", LIGER_VERSION) or ("it needs triton" if needed else None)


def cut_cross_entropy(case: HeadCase, batch: HeadBatch, *, filter_eps: str | None) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

    def log_probs(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        return -linear_cross_entropy(hidden, weight, ids, reduction="none", filter_eps=filter_eps)

    return loss_on(log_probs, case, batch)


def cce_obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "it is a Triton kernel for a GPU"
    return installed_obstacle("cut-cross-entropy", CCE_VERSION) or compile_obstacle(device)


def torch_linear_cross_entropy(case: HeadCase, batch: HeadBatch) -> Tensor:
    def log_probs(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions()
        return -torch.nn.functional.linear_cross_entropy(hidden, weight, ids, reduction="none", options=options)

    return loss_on(log_probs, case, batch)


def torch_obstacle(device: torch.device) -> str | None:
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        return None
    return f"torch {torch.__version__} has no nn.functional.linear_cross_entropy"
