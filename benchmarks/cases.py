"""What is compared: one registry, for ``python -m benchmarks`` and for pytest-benchmark.

The same answer means: loss and dlogits within a rounding of the float64 answer (``LIMITS`` in ``__main__``).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from humanline_fused import HumanlineClamp, Logits, dpo_loss, grpo_loss, kto_loss

LOG_EPSILON = 1.5
MASKED_SHARE = 0.3

Settings = dict[str, float]
Answer = tuple[Tensor, Tensor]
"""``loss`` [] and ``dlogits`` [B, T, V]."""


@dataclass(frozen=True)
class Batch:
    """What a loss on logits takes, for every objective; the tests' batches are of this kind too."""

    logits: Tensor
    ref_logits: Tensor
    target_ids: Tensor
    loss_mask: Tensor
    desirable: Tensor
    advantages: Tensor

    def to(self, dtype: torch.dtype) -> "Batch":
        """The same batch with logits in ``dtype``, and advantages in it too, but never below float32."""
        return replace(
            self,
            logits=self.logits.detach().to(dtype),
            ref_logits=self.ref_logits.to(dtype),
            advantages=self.advantages.to(torch.promote_types(dtype, torch.float32)),
        )


@dataclass(frozen=True)
class Case:
    """One loss on logits: forward and backward, policy and reference, humanline's bounds."""

    name: str
    objective: str
    settings: Settings

    def providers(self) -> dict[str, Callable[[Batch], Answer]]:
        """Who computes it, by name; the first is what the others are compared with."""
        from benchmarks import peers

        return {
            "eager, as HALOs": partial(_run, partial(peers.halos, self.objective), self.settings),
            "humanline_fused": partial(_run, partial(_ours, self.objective), self.settings),
        }

    def oracle(self, batch: Batch) -> Answer:
        """The float64 answer."""
        return _run(partial(_ours, self.objective), self.settings, batch.to(torch.float64))


CASES = [
    Case("dpo", "dpo", {"beta": 0.1}),
    Case("kto", "kto", {"beta": 0.1, "kl": 0.2}),
    Case("grpo", "grpo", {"beta": 0.01, "epsilon": 0.2}),
]


def make_batch(B: int, T: int, V: int, dtype: torch.dtype, device: torch.device) -> Batch:
    """Random logits and a reference near them; 30 % of the rows do not count."""
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(B, T, V, generator=generator, device=device)
    noise = torch.randn(B, T, V, generator=generator, device=device)
    return Batch(
        logits=logits.mul(2).to(dtype),
        ref_logits=noise.mul_(0.5).add_(logits, alpha=2).to(dtype),
        target_ids=torch.randint(0, V, (B, T), generator=generator, device=device),
        loss_mask=torch.rand(B, T, generator=generator, device=device) >= MASKED_SHARE,
        desirable=torch.arange(B, device=device) % 2 == 0,
        advantages=torch.randn(B, generator=generator, device=device),
    )


def _run(loss: Callable[[Tensor, Batch, Settings], Tensor], settings: Settings, batch: Batch) -> Answer:
    logits = batch.logits.detach().requires_grad_()
    value = loss(logits, batch, settings)
    (dlogits,) = torch.autograd.grad(value, logits)
    return value.detach(), dlogits


def _ours(objective: str, logits: Tensor, batch: Batch, settings: Settings) -> Tensor:
    operation = {"dpo": dpo_loss, "kto": kto_loss, "grpo": grpo_loss}[objective]
    label = {"dpo": (), "kto": (batch.desirable,), "grpo": (batch.advantages,)}[objective]
    policy, reference = Logits(logits), Logits(batch.ref_logits)
    clamp = HumanlineClamp(-LOG_EPSILON, LOG_EPSILON)
    return operation(policy, reference, batch.target_ids, batch.loss_mask, *label, clamp=clamp, **settings).loss
