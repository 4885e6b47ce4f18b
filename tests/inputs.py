"""Batches for the operations' tests, and every loss behind one signature."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.batches import Batch
from humanline_fused import (
    HumanlineClamp,
    Logits,
    TokenLogp,
    dpo_loss,
    grpo_loss,
    kto_loss,
)
from humanline_fused.scores import Scores


def random_batch(
    device: torch.device,
    B: int = 4,
    T: int = 5,
    V: int = 37,
    dtype: torch.dtype = torch.float32,
    spread: float = 1.5,
    seed: int = 0,
) -> Batch:
    """Return logits of scale 3 and a reference ``spread`` away: with 1.5 both humanline bounds bind on some tokens."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(B, T, V, generator=generator)
    return Batch(
        logits=logits.to(dtype).to(device),
        ref_logits=(logits + spread * torch.randn(B, T, V, generator=generator)).to(dtype).to(device),
        target_ids=torch.randint(0, V, (B, T), generator=generator).to(device),
        loss_mask=(torch.rand(B, T, generator=generator) < 0.7).to(device),
        desirable=(torch.arange(B) % 2 == 0).to(device),
        advantages=torch.randn(B, generator=generator).to(device),
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.3, "label_smoothing": 0.1},
    "kto": {"beta": 0.3, "desirable_weight": 1.1, "undesirable_weight": 0.9, "kl": 0.2},
    "grpo": {"beta": 0.05, "epsilon": 0.2, "epsilon_high": 0.3},
}


def loss_of(
    objective: str,
    policy: Scores,
    reference: Scores,
    batch: Batch,
    *,
    clamp: HumanlineClamp | None = HumanlineClamp(),  # noqa: B008
    impl: str = "auto",
    **settings: Any,
) -> Any:
    """Return the output of one loss, with settings that exercise all its terms."""
    settings = {**SETTINGS[objective], **settings, "clamp": clamp, "impl": impl}
    ids, mask = batch.target_ids, batch.loss_mask
    match objective:
        case "dpo":
            return dpo_loss(policy, reference, ids, mask, **settings)
        case "kto":
            return kto_loss(policy, reference, ids, mask, batch.desirable, **settings)
        case "grpo":
            return grpo_loss(policy, reference, ids, mask, batch.advantages, **settings)
    raise KeyError(objective)


FORMS: list[tuple[str, dict[str, Any]]] = [("dpo", {}), ("kto", {}), ("grpo", {}), ("grpo", {"one_launch": True})]
"""Objective and settings, for every path of a loss through the kernels."""


def loss_and_gradient(
    objective: str,
    batch: Batch,
    *,
    grad_output: float = 1.0,
    lay_out: Callable[[Tensor], Tensor] = lambda logits: logits,
    temperature: float | Tensor = 1.0,
    **settings: Any,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return all results of a loss on logits, by name, and its gradient in the policy's logits.

    Args:
        lay_out: gives logits another memory layout.
        temperature: of policy and reference.
    """
    logits = batch.logits.detach().clone().requires_grad_()
    policy, reference = (Logits(lay_out(x), temperature=temperature) for x in (logits, batch.ref_logits))
    out = loss_of(objective, policy, reference, batch, **settings)
    (out.loss * grad_output).backward()
    assert logits.grad is not None
    return {name: getattr(out, name).detach() for name in out.__dataclass_fields__}, logits.grad


def token_batch(
    logp: list[list[float]],
    ref_logp: list[list[float]],
    mask: list[list[int]] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, TokenLogp, Tensor, Tensor]:
    """Return given log-probs of policy (a leaf with a gradient) and reference, ids that are never read, and a mask."""
    policy = torch.tensor(logp, device=device, requires_grad=True)
    loss_mask = torch.ones(policy.shape, dtype=torch.bool) if mask is None else torch.tensor(mask, dtype=torch.bool)
    ids = torch.zeros(policy.shape, dtype=torch.long, device=device)
    return policy, TokenLogp(torch.tensor(ref_logp, device=device)), ids, loss_mask.to(device)
