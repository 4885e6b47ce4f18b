"""Cases on hidden states: the product with the head's weight is part of the loss.

Work is counted in units: one product of 2·n·H·V flops, for the n rows that count. A log-prob without a gradient takes
one, a frozen head two, a trained head three (four where the gradient arrives at the log-probs: then nothing is known of
it while the logits are there), and a reference one more where it is scored inside.

The same answer means: the value, dhidden and dweight within a few roundings of the float64 answer. bfloat16 logits are
rounded by some and not by others, which moves a loss by more than that; so answers are compared where no rounding
touches the logits (:meth:`HeadBatch.exact`), and times are taken on random numbers of the same shapes.
"""

import math
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from benchmarks.kernels.cases import DPO, GRPO, KTO, MASKED_SHARE, Case, Mode, Targets, random_targets

SPREAD = 2.0
"""Nats: standard deviation of a row's logits, which shrinks to the next exact scale in :meth:`HeadBatch.exact`."""

REFERENCE_NOISE = 0.1
"""How far the reference's hidden states and weight are from the policy's, in their own standard deviations."""

PEAKS = 5.0, 10.0
"""A peaked row's target stands so many standard deviations above its other logits: between the two."""

CHUNK_BYTES = 2**27
"""Of float32 logits, while the given log-probs of the reference are made."""


@dataclass(frozen=True)
class HeadBatch(Targets):
    """What a loss on hidden states takes.

    Attributes:
        hidden, ref_hidden: [B, T, H].
        weight, ref_weight: [V, H].
        ref_logp: [B, T], float32, nats: the reference's log-probs where they are given; 0 where the mask is False.
    """

    hidden: Tensor
    weight: Tensor
    ref_hidden: Tensor
    ref_weight: Tensor
    ref_logp: Tensor

    @property
    def shape(self) -> dict[str, int]:
        B, T, H = self.hidden.shape
        return {"B": B, "T": T, "V": len(self.weight), "H": H}

    @property
    def scores(self) -> Tensor:
        return self.hidden

    def exact(self) -> "HeadBatch":
        """Signs in place of numbers.

        A logit is then an even integer (H is even) of at most 512, times a power of two: 8 bits hold it, eight standard
        deviations wide at H = 4096 and any at H ≤ 512.
        """
        H = self.hidden.shape[-1]
        scale = 2.0 ** math.floor(math.log2(SPREAD / math.sqrt(H)))
        return replace(
            self,
            hidden=_signs(self.hidden, 1.0),
            weight=_signs(self.weight, scale),
            ref_hidden=_signs(self.ref_hidden, 1.0),
            ref_weight=_signs(self.ref_weight, scale),
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
        rows = self.loss_mask.flatten().nonzero()[:, 0]
        hidden, ids = self.ref_hidden.flatten(0, 1)[rows], self.target_ids.flatten()[rows]
        size = max(1, CHUNK_BYTES // (4 * len(self.ref_weight)))
        chunks = [
            (part @ self.ref_weight.T).float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
            for part, targets in zip(hidden.split(size), ids.split(size), strict=True)
        ]
        ref_logp = torch.zeros_like(self.loss_mask, dtype=torch.float32)
        return replace(self, ref_logp=ref_logp.masked_scatter(self.loss_mask, torch.cat(chunks)))


def _signs(numbers: Tensor, magnitude: float) -> Tensor:
    return torch.copysign(torch.full_like(numbers, magnitude), numbers)


@dataclass(frozen=True)
class HeadCase(Case):
    """One operation on hidden states.

    Attributes:
        units: the floor, for each mode.
        given: the reference's log-probs are given, and cost nothing.
        is_peaked: on :meth:`HeadBatch.peaked`.
    """

    _: KW_ONLY
    units: dict[Mode, int]
    given: bool = False
    is_peaked: bool = False

    @property
    def modes(self) -> tuple[Mode, ...]:
        return tuple(self.units)

    def floor(self, mode: Mode, batch: HeadBatch) -> dict[str, int]:
        V, H = batch.weight.shape
        return {"floor_flops": self.units[mode] * 2 * batch.counted * H * V}

    def inputs(self, batch: HeadBatch) -> HeadBatch:
        return batch.peaked() if self.is_peaked else batch

    def leaves(self, mode: Mode, batch: HeadBatch) -> tuple[HeadBatch, tuple[Tensor, ...]]:
        hidden, weight = batch.hidden.detach().requires_grad_(), batch.weight.detach()
        if mode == "frozen":
            return replace(batch, hidden=hidden), (hidden,)
        weight.requires_grad_()
        return replace(batch, hidden=hidden, weight=weight), (hidden, weight)


def _units(*modes: Mode, reference: int) -> dict[Mode, int]:
    floor: dict[Mode, int] = {"nograd": 1, "frozen": 2, "full": 3}
    return {mode: floor[mode] + reference for mode in modes}


EVERY_MODE: tuple[Mode, ...] = ("nograd", "frozen", "full")
TRAINING: tuple[Mode, ...] = ("frozen", "full")

HEAD_CASES = {
    case.name: case
    for case in (
        HeadCase("head_logp", "logp", {}, units={"nograd": 1, "frozen": 2, "full": 4}),
        HeadCase("head_dpo", "dpo", DPO, units=_units(*EVERY_MODE, reference=1)),
        HeadCase("head_dpo_given", "dpo", DPO, units=_units(*EVERY_MODE, reference=0), given=True),
        HeadCase("head_kto", "kto", KTO, units=_units(*TRAINING, reference=1)),
        HeadCase("head_kto_given", "kto", KTO, units=_units(*TRAINING, reference=0), given=True),
        HeadCase("head_grpo", "grpo", GRPO, units=_units(*TRAINING, reference=1)),
        HeadCase("head_grpo_given", "grpo", GRPO, units=_units(*TRAINING, reference=0), given=True),
        HeadCase("head_dpo_unclamped", "dpo", DPO, math.inf, units=_units(*TRAINING, reference=1)),
        HeadCase("head_grpo_unclamped", "grpo", GRPO, math.inf, units=_units(*TRAINING, reference=0), given=True),
        HeadCase("head_dpo_peaked", "dpo", DPO, units=_units(*TRAINING, reference=0), given=True, is_peaked=True),
    )
}


def make_head_batch(
    B: int, T: int, V: int, H: int, dtype: torch.dtype, device: torch.device, masked: float = MASKED_SHARE
) -> HeadBatch:
    """Hidden states of variance 1, a weight that gives logits of :data:`SPREAD`, and a reference near both; H even."""
    generator = torch.Generator(device).manual_seed(0)

    def with_neighbour(*shape: int, scale: float) -> tuple[Tensor, Tensor]:
        numbers = torch.randn(shape, generator=generator, device=device).mul_(scale)
        noise = torch.randn(shape, generator=generator, device=device).mul_(scale * REFERENCE_NOISE)
        return numbers.to(dtype), noise.add_(numbers).to(dtype)

    hidden, ref_hidden = with_neighbour(B, T, H, scale=1.0)
    weight, ref_weight = with_neighbour(V, H, scale=SPREAD / math.sqrt(H))
    return HeadBatch(
        hidden=hidden,
        weight=weight,
        ref_hidden=ref_hidden,
        ref_weight=ref_weight,
        ref_logp=torch.empty(0, device=device),
        **random_targets(B, T, V, generator, masked),
    ).scored()
