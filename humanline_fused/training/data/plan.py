"""Plan of the examples of each optimizer step: a pure function of the step, so coming steps can be read ahead."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class MicroBatch:
    """The examples of one forward pass on one rank.

    Attributes:
        ids: indices into the dataset.
        following: for each of ``ids`` the next id in the *global* micro-batch (all ranks, cyclic). KTO pairs the
            prompt of the first with the completion of the second to estimate its reference point.
    """

    ids: tuple[int, ...]
    following: tuple[int, ...]


def micro_batch(ids: tuple[int, ...], start: int, stop: int) -> MicroBatch:
    """Cut ``ids[start:stop]`` from a global micro-batch."""
    return MicroBatch(ids[start:stop], (ids[1:] + ids[:1])[start:stop])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(number)


@dataclass(frozen=True, eq=False)
class Units:
    """Runs of consecutive examples that stay together in every permutation: the completions of one prompt.

    Attributes:
        starts: [units], the first example of each unit, ascending from 0.
        num_examples: examples of all units.
    """

    starts: np.ndarray
    num_examples: int

    @property
    def code(self) -> int:
        """A CRC-32 of the units, to detect that they have changed."""
        return zlib.crc32(self.starts.astype("<i8").tobytes(), self.num_examples)

    def in_order(self, order: np.ndarray) -> np.ndarray:
        """Return the examples of the units in this order, each unit's own in theirs.

        >>> Units(np.array([0, 2, 3]), num_examples=6).in_order(np.array([2, 0, 1])).tolist()
        [3, 4, 5, 0, 1, 2]
        """
        sizes = np.diff(self.starts, append=self.num_examples)[order]
        before = np.cumsum(sizes) - sizes
        return np.repeat(self.starts[order] - before, sizes) + np.arange(self.num_examples)


@lru_cache(maxsize=2)
def _permuted_units(seed: int, epoch: int, units: Units) -> np.ndarray:
    return units.in_order(_permutation(seed, epoch, len(units.starts)))


class BatchSizes(NamedTuple):
    """Division of an optimizer step's examples among forward passes and ranks.

    Attributes:
        batch_size: examples in one forward pass on one rank.
        accumulation: forward passes per optimizer step.
        world_size: number of ranks; each has its own share of the data.
    """

    batch_size: int
    accumulation: int = 1
    world_size: int = 1

    @property
    def micro_batch(self) -> int:
        """Examples in one global micro-batch: one forward pass on every rank."""
        return self.batch_size * self.world_size

    @property
    def global_batch(self) -> int:
        """Examples per optimizer step over all ranks."""
        return self.micro_batch * self.accumulation

    def __str__(self) -> str:
        return f"{self.batch_size} per device x {self.accumulation} accumulation steps x {self.world_size} processes"


class StepPlan(ABC):
    """Cuts the examples of an optimizer step into the micro-batches of every rank.

    Attributes:
        sizes: sizes of the batches.
        seed: seed of the permutations, ≥ 0.
        lengths: returns the numbers of tokens of examples. With it the examples of a step are sorted, the longest
            first, before they are cut, so that those of a micro-batch have similar lengths; a step keeps its examples.
    """

    sizes: BatchSizes
    seed: int
    lengths: Callable[[Sequence[int]], Sequence[int]] | None

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""

    @abstractmethod
    def examples(self, step: int) -> Sequence[int]:
        """Return the ``sizes.global_batch`` ids of optimizer step ``step`` (from 0)."""

    def global_window(self, step: int) -> list[tuple[int, ...]]:
        """Return the global micro-batches of optimizer step ``step``, each with ``sizes.micro_batch`` ids."""
        ids, width = self.examples(step), self.sizes.micro_batch
        if self.lengths is not None:
            tokens = self.lengths(ids)
            ids = [ids[place] for place in sorted(range(len(ids)), key=lambda place: -tokens[place])]
        return [tuple(ids[start : start + width]) for start in range(0, len(ids), width)]

    def window(self, step: int, rank: int) -> list[MicroBatch]:
        """Return the micro-batches of ``rank`` in a step: ``accumulation`` micro-batches of ``batch_size``."""
        start = rank * self.sizes.batch_size
        return [micro_batch(ids, start, start + self.sizes.batch_size) for ids in self.global_window(step)]

    def __len__(self) -> int:
        """Micro-batches per epoch on one rank: the length of a data loader."""
        return self.steps_per_epoch * self.sizes.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Placeholders, so that a loader can count batches; the examples come from :meth:`window`."""
        return iter([[0]] * len(self))


@dataclass(frozen=True)
class BatchPlan(StepPlan):
    """Every epoch is a new permutation, cut into global batches; an incomplete last batch is left out of the epoch.

    With ``units`` whole units are permuted. The cut goes through a unit that does not end where a batch does.

    The examples of a step depend only on ``sizes.global_batch``, so more processes with less accumulation see the same
    examples. On resume no data are skipped, because any step can be computed directly.

    Args:
        num_examples: length of the dataset.
        sizes, seed, lengths: as of :class:`StepPlan`.
        units: examples that stay together; default each alone.

    Raises:
        ValueError: the dataset has fewer examples than one global batch.

    >>> plan = BatchPlan(num_examples=8, sizes=BatchSizes(batch_size=2, accumulation=2), seed=0)
    >>> plan.steps_per_epoch, [len(micro.ids) for micro in plan.window(step=0, rank=0)]
    (2, [2, 2])
    """

    num_examples: int
    sizes: BatchSizes
    seed: int
    units: Units | None = None
    lengths: Callable[[Sequence[int]], Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if self.num_examples < self.sizes.global_batch:
            raise ValueError(
                f"expected at least {self.sizes.global_batch} examples, one global batch ({self.sizes}), got "
                f"{self.num_examples}"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_examples // self.sizes.global_batch

    def examples(self, step: int) -> list[int]:
        epoch, position = divmod(step, self.steps_per_epoch)
        if self.units is None:
            order = _permutation(self.seed, epoch, self.num_examples)
        else:
            order = _permuted_units(self.seed, epoch, self.units)
        first = position * self.sizes.global_batch
        return order[first : first + self.sizes.global_batch].tolist()


@dataclass(frozen=True)
class RoundPlan(StepPlan):
    """Rounds of ``rollout_every`` optimizer steps, each trained on the samples of its own prompts, in order.

    Rounds take their prompts in turn from one permutation of the dataset after another. An example's id is its index
    in its round.

    Args:
        num_prompts: length of the dataset.
        per_prompt: examples made from the samples of one prompt.
        rollout_every: optimizer steps per round.
        sizes, seed, lengths: as of :class:`StepPlan`.

    Raises:
        ValueError: the examples of a round are not a whole number of prompts.

    >>> plan = RoundPlan(6, per_prompt=4, rollout_every=2, sizes=BatchSizes(8), seed=0)
    >>> plan.prompts_per_round, sorted({*plan.prompts(0)} | {*plan.prompts(1)}), list(plan.examples(3))
    (4, [0, 1, 2, 3, 4, 5], [8, 9, 10, 11, 12, 13, 14, 15])
    """

    num_prompts: int
    per_prompt: int
    rollout_every: int
    sizes: BatchSizes
    seed: int
    lengths: Callable[[Sequence[int]], Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if self.examples_per_round % self.per_prompt:
            raise ValueError(
                f"expected num_generations to divide the {self.examples_per_round} samples of a round "
                f"({self.sizes} x rollout_every={self.rollout_every}), got {self.per_prompt}"
            )

    @property
    def examples_per_round(self) -> int:
        """Examples per round, over all its steps and all ranks."""
        return self.sizes.global_batch * self.rollout_every

    @property
    def prompts_per_round(self) -> int:
        """Prompts per round."""
        return self.examples_per_round // self.per_prompt

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.num_prompts * self.per_prompt // self.sizes.global_batch)

    def prompts(self, number: int) -> list[int]:
        """Return the indices of the prompts of round ``number`` (from 0)."""
        first = number * self.prompts_per_round
        places = (divmod(place, self.num_prompts) for place in range(first, first + self.prompts_per_round))
        return [int(_permutation(self.seed, epoch, self.num_prompts)[place]) for epoch, place in places]

    def examples(self, step: int) -> range:
        first = step % self.rollout_every * self.sizes.global_batch
        return range(first, first + self.sizes.global_batch)


def evaluation_plan(num_examples: int, batch_size: int, rank: int, world_size: int) -> list[tuple[MicroBatch, bool]]:
    """Return this rank's micro-batches of a dataset in order, each with True if it counts.

    The micro-batches are the same for any number of ranks. All ranks get the same number, because a forward pass may be
    a collective; a micro-batch past the end repeats the last one and does not count. ``following`` is cyclic over the
    whole dataset, so a last micro-batch of one example also has a mismatched pair.
    """
    ids = tuple(range(num_examples))
    starts = range(0, num_examples, batch_size)
    dealt = []
    for first in range(0, len(starts), world_size):
        mine = first + rank
        start = starts[min(mine, len(starts) - 1)]
        dealt.append((micro_batch(ids, start, start + batch_size), mine < len(starts)))
    return dealt
