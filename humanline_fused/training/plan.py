"""Which examples an optimizer step takes: a pure function of the step, so the coming steps can be read ahead."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class MicroBatch:
    """The examples of one forward pass on one rank.

    Attributes:
        ids: indices into the dataset.
        following: for each of ``ids`` the next one of the *global* micro-batch (all ranks, cyclic). KTO pairs the
            prompt of the one with the completion of the other to estimate its reference point.
    """

    ids: tuple[int, ...]
    following: tuple[int, ...]


def micro_batch(ids: tuple[int, ...], start: int, stop: int) -> MicroBatch:
    """Cut ``ids[start:stop]`` from a global micro-batch."""
    return MicroBatch(ids[start:stop], (ids[1:] + ids[:1])[start:stop])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


@dataclass(frozen=True)
class BatchPlan:
    """Every epoch is a new permutation, cut into global batches; what does not fill one is left out of that epoch.

    The global batch of a step depends on ``batch_size * accumulation * world_size`` alone, so more processes with less
    accumulation see the same examples. There is nothing to fast-forward on resume.

    Args:
        num_examples: length of the dataset.
        batch_size: examples of one forward pass on one rank.
        accumulation: forward passes of one optimizer step.
        world_size: ranks, each with its own share of the data.
        seed: of the permutations, ≥ 0.

    Raises:
        ValueError: the dataset does not fill one global batch.

    >>> plan = BatchPlan(num_examples=8, batch_size=2, accumulation=2, world_size=1, seed=0)
    >>> plan.steps_per_epoch, [len(micro.ids) for micro in plan.window(step=0, rank=0)]
    (2, [2, 2])
    """

    num_examples: int
    batch_size: int
    accumulation: int
    world_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_examples < self.global_batch_size:
            raise ValueError(
                f"expected at least {self.global_batch_size} examples, one global batch ({self.batch_size} per device "
                f"x {self.accumulation} accumulation steps x {self.world_size} processes), got {self.num_examples}"
            )

    @property
    def global_batch_size(self) -> int:
        """Examples of one optimizer step over all ranks."""
        return self.batch_size * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return self.num_examples // self.global_batch_size

    def global_window(self, step: int) -> list[tuple[int, ...]]:
        """The global micro-batches of optimizer step ``step`` (from 0), each ``batch_size * world_size`` ids."""
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self.global_batch_size
        ids = _permutation(self.seed, epoch, self.num_examples)[first : first + self.global_batch_size].tolist()
        width = self.batch_size * self.world_size
        return [tuple(ids[start : start + width]) for start in range(0, len(ids), width)]

    def window(self, step: int, rank: int) -> list[MicroBatch]:
        """What ``rank`` computes in optimizer step ``step``: ``accumulation`` micro-batches of ``batch_size``."""
        start = rank * self.batch_size
        return [micro_batch(ids, start, start + self.batch_size) for ids in self.global_window(step)]

    def __len__(self) -> int:
        """Micro-batches of one epoch on one rank: the length of a data loader."""
        return self.steps_per_epoch * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """What a loader needs to count batches; the examples themselves come from :meth:`window`."""
        return iter([[0]] * len(self))


def evaluation_plan(num_examples: int, batch_size: int, rank: int, world_size: int) -> list[tuple[MicroBatch, bool]]:
    """The dataset in order, dealt to the ranks in micro-batches, each with whether it counts.

    The micro-batches are the same for any number of ranks. Each rank gets as many as any other, because a forward
    pass may be a collective; what is dealt beyond the end is a repetition that does not count. ``following`` is cyclic
    over the whole set, so a last micro-batch of one example has a mismatched pair too.
    """
    ids = tuple(range(num_examples))
    starts = range(0, num_examples, batch_size)
    dealt = []
    for first in range(0, len(starts), world_size):
        mine = first + rank
        start = starts[min(mine, len(starts) - 1)]
        dealt.append((micro_batch(ids, start, start + batch_size), mine < len(starts)))
    return dealt
