"""What is compared: one registry, for ``python -m benchmarks`` and for pytest-benchmark.

The same answer means: the value (``logp`` or the loss) and dlogits within a rounding of the float64 answer
(the limits in ``compare.py``). A case's floor is the bytes that no implementation can do without.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

LOG_EPSILON = 1.5
MASKED_SHARE = 0.3
SOFTCAP = 30.0
"""Of Gemma's final logits."""

Settings = dict[str, float]
Mode = Literal["nograd", "full"]
"""The value alone under ``torch.no_grad()``, or forward and backward."""

MODES: tuple[Mode, ...] = ("nograd", "full")


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
class Passes:
    """Over [N, V]: reads of the rows that count, and writes of every row (dlogits is written whole)."""

    reads: int
    writes: int


@dataclass(frozen=True)
class Case:
    """One operation on logits.

    Attributes:
        operation: ``"logp"`` (its gradient for dlogp = the advantages), ``"dpo"``, ``"kto"`` or ``"grpo"``.
        passes: the floor, for each mode that is worth a comparison.
        log_epsilon: humanline's bounds are ±this.
    """

    name: str
    operation: str
    passes: dict[Mode, Passes]
    settings: Settings
    log_epsilon: float = LOG_EPSILON
    softcap: float | None = None
    inplace_gradient: bool = False
    one_launch: bool = False

    @property
    def has_reference(self) -> bool:
        return self.operation != "logp"

    @property
    def by_default(self) -> "Case":
        """The same operation without what a caller has to opt into."""
        return replace(self, inplace_gradient=False, one_launch=False)

    def floor_bytes(self, mode: Mode, batch: Batch) -> int:
        passes = self.passes[mode]
        rows = passes.reads * int(batch.loss_mask.sum()) + passes.writes * batch.loss_mask.numel()
        return rows * batch.logits.shape[-1] * batch.logits.itemsize


POLICY: dict[Mode, Passes] = {"nograd": Passes(1, 0), "full": Passes(2, 1)}
BOTH_MODELS: dict[Mode, Passes] = {"nograd": Passes(2, 0), "full": Passes(3, 1)}
GRPO: Settings = {"beta": 0.01, "epsilon": 0.2}

CASES = {
    case.name: case
    for case in (
        Case("logp", "logp", POLICY, {}),
        Case("logp_softcap", "logp", POLICY, {}, softcap=SOFTCAP),
        Case("dpo", "dpo", BOTH_MODELS, {"beta": 0.1}),
        Case("dpo_inplace", "dpo", {"full": Passes(3, 1)}, {"beta": 0.1}, inplace_gradient=True),
        Case("kto", "kto", BOTH_MODELS, {"beta": 0.1, "kl": 0.2}),
        Case("grpo", "grpo", BOTH_MODELS, GRPO),
        Case("grpo_one_launch", "grpo", {"full": Passes(2, 1)}, GRPO, one_launch=True),
        Case("grpo_unclamped", "grpo", BOTH_MODELS, GRPO, log_epsilon=math.inf),
    )
}


def make_batch(B: int, T: int, V: int, dtype: torch.dtype, device: torch.device, masked: float = MASKED_SHARE) -> Batch:
    """Random logits and a reference near them. A ``masked`` share of the rows does not count, and no last row does:
    a causal model's last row has no target."""
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(B, T, V, generator=generator, device=device)
    noise = torch.randn(B, T, V, generator=generator, device=device)
    ref_logits = noise.mul_(0.5).add_(logits, alpha=2).to(dtype)
    del noise
    loss_mask = torch.rand(B, T, generator=generator, device=device) >= masked
    loss_mask[:, -1] = False
    return Batch(
        logits=logits.mul_(2).to(dtype),
        ref_logits=ref_logits,
        target_ids=torch.randint(0, V, (B, T), generator=generator, device=device),
        loss_mask=loss_mask,
        desirable=torch.arange(B, device=device) % 2 == 0,
        advantages=torch.randn(B, generator=generator, device=device),
    )
