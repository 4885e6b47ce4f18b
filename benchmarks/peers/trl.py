"""Log-probs and losses on logits, as others compute them.

TRL and Liger give log-probs and a GRPO loss on logits; the losses around TRL's log-probs are HALOs' formulas. Both get
ids and mask shifted, as ours does: their trainers slice ``logits[:, :-1]``, whose backward costs three more passes.
"""

import torch
from torch import Tensor

from benchmarks.kernels.cases import Case
from benchmarks.kernels.logits import Batch
from benchmarks.peers.halos import loss_on_log_probs
from benchmarks.peers.installed import LIGER_VERSION, TRL_VERSION, installed_obstacle, missing

TRL = f"trl {TRL_VERSION}: kernels/logprob_entropy.py on a GPU, trainer/utils.py selective_log_softmax elsewhere"
LIGER = (
    f"liger-kernel {LIGER_VERSION}: transformers/grpo_loss.py triton_grpo_loss, fused_selective_log_softmax; "
    "inplace=False (its default is True), so its peak holds a dlogits"
)


def trl(case: Case, batch: Batch, *, kernels: bool | None = None) -> Tensor:
    """``selective_log_softmax``, which is the Triton kernel (entropy included) on a GPU and eager PyTorch elsewhere.

    Args:
        kernels: call the Triton kernel, whatever the device; None is TRL's own choice.
    """
    if kernels or batch.logits.is_cuda:  # the trainers' wrapper of the kernel imports all that a trainer needs
        from trl.kernels import selective_log_softmax_and_entropy  # pyright: ignore[reportMissingImports]

        def log_probs(logits: Tensor) -> Tensor:
            return selective_log_softmax_and_entropy(logits, batch.target_ids, 1.0, batch.loss_mask)[0]
    else:
        from trl.trainer.utils import selective_log_softmax  # pyright: ignore[reportMissingImports]

        def log_probs(logits: Tensor) -> Tensor:
            return selective_log_softmax(logits, batch.target_ids, row_mask=batch.loss_mask)

    logp = log_probs(batch.logits)
    if not case.has_reference:
        return logp
    with torch.no_grad():
        ref_logp = log_probs(batch.ref_logits)
    return loss_on_log_probs(case, logp, ref_logp, batch)


def liger(case: Case, batch: Batch) -> Tensor:
    """The synced reference is the old policy and the KL's reference; it takes T rows for T − 1 targets."""
    from liger_kernel.transformers.grpo_loss import (  # pyright: ignore[reportMissingImports]
        fused_selective_log_softmax,
        triton_grpo_loss,
    )

    ids, mask = batch.target_ids[:, :-1].contiguous(), batch.loss_mask[:, :-1].contiguous()
    ref_logp = fused_selective_log_softmax(batch.ref_logits, ids, temperature=1.0, mask=mask)
    epsilon = case.settings["epsilon"]
    loss, _ = triton_grpo_loss(
        batch.logits,
        ref_logp,
        ref_logp,
        ids,
        batch.advantages,
        mask,
        temperature=1.0,
        beta=case.settings["beta"],
        eps_low=epsilon,
        eps_high=epsilon,
        inplace=False,
        loss_type="bnpo",  # the mean over tokens
        reduce=True,
    )
    return loss


def trl_obstacle(device: torch.device) -> str | None:
    needed = ("transformers",) if device.type == "cuda" else ("transformers", "accelerate", "datasets", "pandas")
    absent = missing(*needed)
    return installed_obstacle("trl", TRL_VERSION) or (f"it needs {', '.join(absent)}" if absent else None)


def liger_obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "its GRPO loss is a Triton kernel"
    return installed_obstacle("liger-kernel", LIGER_VERSION)
