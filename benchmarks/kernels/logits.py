"""Cases on logits.

The same answer means: the value (``logp`` or the loss) and dlogits within a rounding of the float64 answer
(the limits in ``compare.py``). A case's floor is the bytes that no implementation can do without.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.cases import DPO, GRPO, KTO, MASKED_SHARE, Case, Mode, Targets, random_targets

SOFTCAP = 30.0
"""Of Gemma's final logits."""


@dataclass(frozen=True)
class Batch(Targets):
    """What a loss on logits takes, [B, T, V] each; the tests' batches are of this kind too."""

    logits: Tensor
    ref_logits: Tensor

    @property
    def shape(self) -> dict[str, int]:
        return dict(zip("BTV", self.logits.shape, strict=True))

    @property
    def scores(self) -> Tensor:
        return self.logits

    def exact(self) -> "Batch":
        """Itself: logits are given."""
        return self

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


POLICY: dict[Mode, Passes] = {"nograd": Passes(1, 0), "full": Passes(2, 1)}
BOTH_MODELS: dict[Mode, Passes] = {"nograd": Passes(2, 0), "full": Passes(3, 1)}


@dataclass(frozen=True)
class LogitsCase(Case):
    """One operation on logits.

    Attributes:
        passes: the floor, for each mode.
    """

    _: KW_ONLY
    passes: dict[Mode, Passes]
    inplace_gradient: bool = False
    one_launch: bool = False

    @property
    def modes(self) -> tuple[Mode, ...]:
        return tuple(self.passes)

    @property
    def by_default(self) -> "LogitsCase":
        """The same operation without what a caller has to opt into."""
        return replace(self, inplace_gradient=False, one_launch=False)

    def floor(self, mode: Mode, batch: Batch) -> dict[str, int]:
        passes = self.passes[mode]
        rows = passes.reads * batch.counted + passes.writes * batch.loss_mask.numel()
        return {"floor_bytes": rows * batch.logits.shape[-1] * batch.logits.itemsize}

    def writable(self, batch: Batch) -> tuple[Batch, Callable[[], object]]:
        if not self.inplace_gradient:
            return batch, lambda: None
        inputs = replace(batch, logits=batch.logits.clone())
        return inputs, partial(inputs.logits.copy_, batch.logits)

    def leaves(self, mode: Mode, batch: Batch) -> tuple[Batch, tuple[Tensor, ...]]:
        logits = batch.logits.detach().requires_grad_()
        if self.inplace_gradient:
            logits = _ModelOutput.apply(logits)  # a gradient may be written over one, never over a leaf or its view
        return replace(batch, logits=logits), (logits,)


class _ModelOutput(torch.autograd.Function):
    """The same memory as what a model would have computed; a copy of it would be timed."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.data

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        return grad_outputs[0]


LOGITS_CASES = {
    case.name: case
    for case in (
        LogitsCase("logp", "logp", {}, passes=POLICY),
        LogitsCase("logp_softcap", "logp", {}, passes=POLICY, softcap=SOFTCAP),
        LogitsCase("dpo", "dpo", DPO, passes=BOTH_MODELS),
        LogitsCase("dpo_inplace", "dpo", DPO, passes={"full": Passes(3, 1)}, inplace_gradient=True),
        LogitsCase("kto", "kto", KTO, passes=BOTH_MODELS),
        LogitsCase("grpo", "grpo", GRPO, passes=BOTH_MODELS),
        LogitsCase("grpo_one_launch", "grpo", GRPO, passes={"full": Passes(2, 1)}, one_launch=True),
        LogitsCase("grpo_unclamped", "grpo", GRPO, math.inf, passes=BOTH_MODELS),
    )
}


def make_batch(B: int, T: int, V: int, dtype: torch.dtype, device: torch.device, masked: float = MASKED_SHARE) -> Batch:
    """Random logits and a reference near them."""
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(B, T, V, generator=generator, device=device)
    noise = torch.randn(B, T, V, generator=generator, device=device)
    ref_logits = noise.mul_(0.5).add_(logits, alpha=2).to(dtype)
    del noise
    targets = random_targets(B, T, V, generator, masked)
    return Batch(logits=logits.mul_(2).to(dtype), ref_logits=ref_logits, **targets)
