"""The forms of training data: what a row becomes, how many sequences an example has, what a round's samples become.

An objective learns from one of three: pairs, labelled completions, or groups with rewards. A form knows no loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from humanline_fused.training.data.advantages import advantages
from humanline_fused.training.data.examples import Example, Sample
from humanline_fused.training.data.records import IMPLICIT, PREFERENCE, REWARDED, UNPAIRED, DataType, Row, Taker, Text


class Draft(NamedTuple):
    """An example before its texts are token ids."""

    completions: list[Text]
    weight: float = 0.0
    reward: float = 0.0


class Form(ABC):
    """How rows, and the samples of a round, become examples.

    Attributes:
        types: of data that have this form; an error names the first.
        sides: sequences of an example.
        has_rewards: whether examples have a reward, which ``scale_rewards`` is about.
        learns_from_ties: whether a prompt whose samples have equal rewards gives examples.
    """

    types: tuple[DataType, ...]
    sides: int = 1
    has_rewards: bool = False
    learns_from_ties: bool = False

    @abstractmethod
    def drafts(self, row: Row, scale_rewards: str) -> list[Draft]:
        """The examples of a row.

        Args:
            scale_rewards: as :func:`humanline_fused.training.data.advantages.advantages`.
        """

    @abstractmethod
    def examples_of(self, prompt: Example, group: Sequence[Sample]) -> Iterator[Example]:
        """The examples of the samples of one prompt."""

    @abstractmethod
    def examples_per_prompt(self, num_generations: int) -> int:
        """Examples that a round plans for, of the samples of one prompt."""

    @abstractmethod
    def role(self, side: int, weight: float) -> str:
        """The name of a sequence for a reader: chosen, desirable, its advantage.

        Args:
            side: index of the sequence in its example.
            weight: of the example.
        """

    @abstractmethod
    def headings(self, row: Row) -> list[str]:
        """The names of a row's completions for a reader."""

    def columns(self, weights: Sequence[float]) -> dict[str, Tensor]:
        """The tensors of a batch that depend on its examples' weights, [examples] each, by name."""
        return {}

    def values(self, row: Row) -> list[float]:
        """The labels or rewards of a row's completions; none of a pair."""
        return row.values

    def facts(self, values: Sequence[Sequence[float]]) -> list[tuple[str, str]]:
        """Names and descriptions of a dataset, from the :meth:`values` of its rows."""
        return []


class Pairs(Form):
    """Preference pairs: chosen and rejected completions of one prompt."""

    types = (PREFERENCE, IMPLICIT)
    sides = 2

    def drafts(self, row: Row, scale_rewards: str) -> list[Draft]:
        return [Draft(row.completions)]

    def examples_of(self, prompt: Example, group: Sequence[Sample]) -> Iterator[Example]:
        """The first of the best as chosen, the first of the worst as rejected; none where all rewards are equal."""
        best, worst = (choose(group, key=lambda one: one.reward) for choose in (max, min))
        if best.reward > worst.reward:
            yield Example(prompt.prompt_ids, (best.completion_ids, worst.completion_ids))

    def examples_per_prompt(self, num_generations: int) -> int:
        return 1

    def role(self, side: int, weight: float) -> str:
        return ("chosen", "rejected")[side]

    def headings(self, row: Row) -> list[str]:
        return ["chosen", "rejected"]


class Labels(Form):
    """Completions that are desirable or undesirable: weights 1 and 0. A pair is one of each."""

    types = (UNPAIRED, PREFERENCE, IMPLICIT)

    def values(self, row: Row) -> list[float]:
        return row.values or [1.0, 0.0]

    def drafts(self, row: Row, scale_rewards: str) -> list[Draft]:
        return [Draft([text], label) for text, label in zip(row.completions, self.values(row), strict=True)]

    def examples_of(self, prompt: Example, group: Sequence[Sample]) -> Iterator[Example]:
        """Desirable above the group's mean reward, undesirable below it; a sample at the mean is left out."""
        for one in group:
            if one.advantage:
                yield Example(prompt.prompt_ids, (one.completion_ids,), float(one.advantage > 0))

    def examples_per_prompt(self, num_generations: int) -> int:
        return num_generations

    def columns(self, weights: Sequence[float]) -> dict[str, Tensor]:
        return {"desirable": torch.tensor([weight > 0 for weight in weights])}

    def role(self, side: int, weight: float) -> str:
        return "desirable" if weight > 0 else "undesirable"

    def headings(self, row: Row) -> list[str]:
        return [self.role(0, label) for label in self.values(row)]

    def facts(self, values: Sequence[Sequence[float]]) -> list[tuple[str, str]]:
        labels = [label for row in values for label in row]
        return [("completions", f"{labels.count(1.0)} desirable, {labels.count(0.0)} undesirable")] if labels else []


class Groups(Form):
    """Completions of one prompt with rewards: each is an example, whose weight is its advantage."""

    types = (REWARDED,)
    has_rewards = True
    learns_from_ties = True

    def drafts(self, row: Row, scale_rewards: str) -> list[Draft]:
        weights = advantages(row.values, scale_rewards)
        return [Draft([t], w, r) for t, w, r in zip(row.completions, weights, row.values, strict=True)]

    def examples_of(self, prompt: Example, group: Sequence[Sample]) -> Iterator[Example]:
        """Every sample. Equal rewards give advantages of 0, and their tokens count, as in training with TRL."""
        for one in group:
            yield Example(prompt.prompt_ids, (one.completion_ids,), one.advantage, one.reward)

    def examples_per_prompt(self, num_generations: int) -> int:
        return num_generations

    def columns(self, weights: Sequence[float]) -> dict[str, Tensor]:
        return {"advantages": torch.tensor(list(weights))}

    def role(self, side: int, weight: float) -> str:
        return f"advantage {weight:+.3f}"

    def headings(self, row: Row) -> list[str]:
        return [f"completion (reward {value:g})" for value in row.values]

    def facts(self, values: Sequence[Sequence[float]]) -> list[tuple[str, str]]:
        if not values:
            return []
        sizes, rewards = [len(row) for row in values], [value for row in values for value in row]
        size = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        ties = sum(len(set(row)) == 1 for row in values)
        return [
            ("groups", f"{len(sizes)}, each of {size} completions, {sum(sizes)} in all"),
            ("rewards", f"{min(rewards):g} to {max(rewards):g}"),
            ("  without signal", f"{ties} with equal rewards: dropped with beta=0, else kept"),
        ]


PAIRS, LABELS, GROUPS = Pairs(), Labels(), Groups()


class Learner(Taker, Protocol):
    """Learns from rows of one form: an objective."""

    @property
    def form(self) -> Form:
        """The form of its data."""
        ...

    @property
    def mismatched(self) -> bool:
        """Whether its loss needs each prompt with the completion of another example too."""
        ...
