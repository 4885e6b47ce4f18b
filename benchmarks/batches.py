"""Random inputs, the same in every process: logits and hidden states."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

MASKED_SHARE = 0.3

SPREAD = 2.0  # nats: standard deviation of a row's logits, which shrinks to the next exact scale in HeadBatch.exact
LOGITS_NOISE, HEAD_NOISE = 0.25, 0.1
"""How far the reference's logits, or its hidden states and weight, are from the policy's, in standard deviations."""

PEAKS = 5.0, 10.0  # a peaked row's target stands so many standard deviations above its other logits: between the two
CHUNK_BYTES = 2**27  # of float32 logits, while the given log-probs of the reference are made


@dataclass(frozen=True)
class Targets:
    """The part of a batch that every loss takes beside its scores."""

    scores: ClassVar[tuple[str, ...]]  # fields: the policy's tensors; those of the reference begin with ref_
    target_ids: Tensor  # [B, T], int64
    loss_mask: Tensor  # [B, T], bool
    desirable: Tensor  # [B], bool
    advantages: Tensor  # [B], at least float32

    @property
    def counted(self) -> int:
        """How many rows count."""
        return int(self.loss_mask.sum())

    @property
    def policy(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.scores)

    @property
    def reference(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f"ref_{name}") for name in self.scores)


@dataclass(frozen=True)
class Batch(Targets):
    """The input of a loss on logits; the tests' batches are of this kind too."""

    scores = ("logits",)
    logits: Tensor  # [B, T, V]
    ref_logits: Tensor  # [B, T, V]

    @property
    def shape(self) -> dict[str, int]:
        return dict(zip("BTV", self.logits.shape, strict=True))

    def exact(self) -> "Batch":
        """The batch whose answers are compared: itself, as logits are given."""
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
class HeadBatch(Targets):
    """The input of a loss on hidden states."""

    scores = "hidden", "weight"
    hidden: Tensor  # [B, T, H]
    weight: Tensor  # [V, H]
    ref_hidden: Tensor
    ref_weight: Tensor
    ref_logp: Tensor  # [B, T], float32, nats: the reference's log-probs where they are given; 0 where the mask is False

    @property
    def shape(self) -> dict[str, int]:
        B, T, H = self.hidden.shape
        return {"B": B, "T": T, "V": len(self.weight), "H": H}

    def exact(self) -> "HeadBatch":
        """The batch whose answers are compared: of the same shape and dtype, with logits that no rounding touches.

        Numbers are replaced by signs. A logit is then an even integer (H is even) of at most 512, times a power of two:
        8 bits hold it, eight standard deviations wide at H = 4096 and any at H ≤ 512.
        """
        scale = 2.0 ** math.floor(math.log2(SPREAD / math.sqrt(self.hidden.shape[-1])))

        def signs(numbers: Tensor, magnitude: float) -> Tensor:
            return torch.copysign(torch.full_like(numbers, magnitude), numbers)

        return replace(
            self,
            hidden=signs(self.hidden, 1.0),
            weight=signs(self.weight, scale),
            ref_hidden=signs(self.ref_hidden, 1.0),
            ref_weight=signs(self.ref_weight, scale),
        ).scored()

    def peaked(self) -> "HeadBatch":
        """Hidden states that lean towards their target's row of the weight, each by an amount of its own."""
        B, T, _ = self.hidden.shape
        low, high = PEAKS
        generator = torch.Generator(self.hidden.device).manual_seed(1)
        peaks = low + (high - low) * torch.rand(B, T, 1, generator=generator, device=self.hidden.device)
        lean = (peaks / SPREAD).to(self.hidden.dtype) * self.weight[self.target_ids]
        return replace(self, hidden=self.hidden + lean, ref_hidden=self.ref_hidden + lean).scored()

    def scored(self) -> "HeadBatch":
        """With the log-probs that the reference gives."""
        hidden, ids = self.ref_hidden[self.loss_mask], self.target_ids[self.loss_mask]
        size = max(1, CHUNK_BYTES // (4 * len(self.ref_weight)))
        chunks = [
            (part @ self.ref_weight.T).float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
            for part, targets in zip(hidden.split(size), ids.split(size), strict=True)
        ]
        ref_logp = torch.zeros_like(self.loss_mask, dtype=torch.float32)
        return replace(self, ref_logp=ref_logp.masked_scatter(self.loss_mask, torch.cat(chunks)))


AnyBatch = Batch | HeadBatch


def random_batch(
    B: int, T: int, V: int, dtype: torch.dtype, device: torch.device, masked: float = MASKED_SHARE, H: int | None = None
) -> AnyBatch:
    """Of hidden states where there is an H, which is even, else of logits."""
    return make_head_batch(B, T, V, H, dtype, device, masked) if H else make_batch(B, T, V, dtype, device, masked)


def make_batch(B: int, T: int, V: int, dtype: torch.dtype, device: torch.device, masked: float = MASKED_SHARE) -> Batch:
    """Logits, and a reference near them."""
    generator = torch.Generator(device).manual_seed(0)
    logits, ref_logits = _neighbours((B, T, V), SPREAD, LOGITS_NOISE, dtype, generator)
    return Batch(logits=logits, ref_logits=ref_logits, **_targets(B, T, V, masked, generator))


def make_head_batch(
    B: int, T: int, V: int, H: int, dtype: torch.dtype, device: torch.device, masked: float = MASKED_SHARE
) -> HeadBatch:
    """Hidden states of variance 1, a weight that gives logits of :data:`SPREAD`, and a reference near both."""
    generator = torch.Generator(device).manual_seed(0)
    hidden, ref_hidden = _neighbours((B, T, H), 1.0, HEAD_NOISE, dtype, generator)
    weight, ref_weight = _neighbours((V, H), SPREAD / math.sqrt(H), HEAD_NOISE, dtype, generator)
    return HeadBatch(
        hidden=hidden,
        weight=weight,
        ref_hidden=ref_hidden,
        ref_weight=ref_weight,
        ref_logp=torch.empty(0, device=device),
        **_targets(B, T, V, masked, generator),
    ).scored()


def _neighbours(
    shape: tuple[int, ...], scale: float, noise: float, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    numbers = torch.randn(shape, generator=generator, device=generator.device).mul_(scale)
    others = torch.randn(shape, generator=generator, device=generator.device).mul_(scale * noise)
    return numbers.to(dtype), others.add_(numbers).to(dtype)


def _targets(B: int, T: int, V: int, masked: float, generator: torch.Generator) -> dict[str, Tensor]:
    """A ``masked`` share of the rows does not count, and no last row does: a causal model's last row has no target."""
    device = generator.device
    loss_mask = torch.rand(B, T, generator=generator, device=device) >= masked
    loss_mask[:, -1] = False
    return {
        "loss_mask": loss_mask,
        "target_ids": torch.randint(0, V, (B, T), generator=generator, device=device),
        "desirable": torch.arange(B, device=device) % 2 == 0,
        "advantages": torch.randn(B, generator=generator, device=device),
    }
