"""Liger's whole losses, which know no clamp."""

from typing import Any

from torch import Tensor

from benchmarks.peers.installed import LIGER_VERSION, compile_obstacle, needs

TOKEN_MEAN = "bnpo"  # its loss_type that takes the mean over tokens


def on_logits(case: Any, batch: Any) -> Tensor:
    """GRPO. The synced reference is the old policy and the KL's reference; it takes T rows for T − 1 targets."""
    from liger_kernel.transformers.grpo_loss import (  # pyright: ignore[reportMissingImports]
        fused_selective_log_softmax,
        triton_grpo_loss,
    )

    ids, mask = batch.target_ids[:, :-1].contiguous(), batch.loss_mask[:, :-1].contiguous()
    ref_logp = fused_selective_log_softmax(batch.ref_logits, ids, temperature=1.0, mask=mask)
    settings = case.objective.settings
    loss, _ = triton_grpo_loss(
        batch.logits,
        ref_logp,
        ref_logp,
        ids,
        batch.advantages,
        mask,
        temperature=1.0,
        beta=settings["beta"],
        eps_low=settings["epsilon"],
        eps_high=settings["epsilon"],
        inplace=False,
        loss_type=TOKEN_MEAN,
        reduce=True,
    )
    return loss


def on_hidden_states(case: Any, batch: Any) -> Tensor:
    """DPO or GRPO. It multiplies every row; GRPO's synced reference is the old policy too."""
    from liger_kernel import chunked_loss  # pyright: ignore[reportMissingImports]

    settings, compiled = case.objective.settings, compile_obstacle(batch.hidden.device) is None
    if case.objective.name == "dpo":
        dpo = chunked_loss.LigerFusedLinearDPOLoss(beta=settings["beta"], compiled=compiled)
        targets = batch.target_ids.masked_fill(~batch.loss_mask, dpo.ignore_index)
        return dpo(batch.weight, batch.hidden, targets, ref_input=batch.ref_hidden, ref_weight=batch.ref_weight)[0]
    clip = {"epsilon_low": settings["epsilon"], "epsilon_high": settings["epsilon"]}
    grpo = chunked_loss.LigerFusedLinearGRPOLoss(beta=settings["beta"], compiled=compiled, **clip, loss_type=TOKEN_MEAN)
    reference = {"ref_per_token_logps": batch.ref_logp, "old_per_token_logps": batch.ref_logp}
    return grpo(batch.hidden, batch.weight, batch.target_ids, batch.loss_mask, batch.advantages, **reference)[0]


KERNEL = (
    "transformers/grpo_loss.py triton_grpo_loss, fused_selective_log_softmax; "
    "inplace=False (its default is True), so its peak holds a dlogits"
)
LINEAR = (
    "chunked_loss/dpo_loss.py LigerFusedLinearDPOLoss, "
    "chunked_loss/grpo_loss.py LigerFusedLinearGRPOLoss; compiled where there is a compiler"
)
LIGER = "liger-kernel", LIGER_VERSION
ON_LOGITS = f"liger-kernel {LIGER_VERSION}: {KERNEL}", on_logits
ON_HIDDEN_STATES = f"liger-kernel {LIGER_VERSION}: {LINEAR}", on_hidden_states
ON_A_GPU, ANYWHERE = needs(*LIGER, gpu="its GRPO loss is a Triton kernel"), needs(*LIGER)
WITH_TRITON = needs(*LIGER, "triton")  # plain PyTorch, which runs anywhere; but the package imports Triton
