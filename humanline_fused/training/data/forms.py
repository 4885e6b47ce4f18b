"""Forms of training data: pairs, labelled completions, and groups with rewards.

A form converts rows and the samples of a round to examples. It does not depend on the loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from humanline_fused.training.data.advantages import advantages
from humanline_fused.training.data.examples import Example, Sample
from humanline_fused.training.data.findings import (
    ALL_DESIRABLE,
    ALL_UNDESIRABLE,
    AT_MEAN,
    LABELLED,
    PAIRED,
    TIED,
    Findings,
)
from humanline_fused.training.data.rows.records import (
    IMPLICIT,
    PREFERENCE,
    REWARDED,
    SCORED,
    UNPAIRED,
    DataType,
    Row,
    Taker,
)


class Draft(NamedTuple):
    """An example before tokenisation.

    Attributes:
        sides: indices of its completions in the row.
        weight, reward: as of :class:`~humanline_fused.training.data.examples.Example`.
    """

    sides: list[int]
    weight: float = 0.0
    reward: float = 0.0


def best_and_worst(rewards: Sequence[float]) -> tuple[int, int] | None:
    """Return the indices of the first best and the first worst reward; None if all are equal.

    >>> best_and_worst([0.0, 1.0, 1.0]), best_and_worst([2.0, 2.0])
    ((1, 0), None)
    """
    best, worst = (choose(range(len(rewards)), key=rewards.__getitem__) for choose in (max, min))
    return (best, worst) if rewards[best] > rewards[worst] else None


def labels_of(weights: Sequence[float]) -> dict[int, float]:
    """Return labels by index: 1 for an advantage above 0, 0 for one below; none for those at 0, the mean reward.

    >>> labels_of(advantages([0.0, 1.0, 2.0], "none"))
    {0: 0.0, 2: 1.0}
    """
    return {index: float(weight > 0) for index, weight in enumerate(weights) if weight}


class Form(ABC):
    """Converts rows, and the samples of a round, to examples.

    Attributes:
        types: data types with this form; an error message names the first.
        sides: sequences per example.
        has_rewards: True if examples have a reward, so that ``scale_rewards`` applies.
        learns_from_ties: True if a prompt whose samples have equal rewards gives examples.
        grouped: True if the examples of a row stand together in a step.
    """

    types: tuple[DataType, ...]
    sides: int = 1
    has_rewards: bool = False
    learns_from_ties: bool = False
    grouped: bool = False

    def converted(self, where: str, row: Row, findings: Findings) -> Row | None:
        """Return a row in this form; None for a group with rewards that gives no example.

        Args:
            where: place of the row, for findings.
            row: a row of one of the form's types; a scored one after grouping.
            findings: counts of conversions and of completions left out, to be added to.
        """
        return row

    @abstractmethod
    def drafts(self, row: Row, scale_rewards: str) -> list[Draft]:
        """Return the examples of a row.

        Args:
            row: the row.
            scale_rewards: as in :func:`humanline_fused.training.data.advantages.advantages`.
        """

    @abstractmethod
    def examples_of(self, prompt: Example, group: Sequence[Sample]) -> Iterator[Example]:
        """Yield the examples made from the samples of one prompt."""

    @abstractmethod
    def examples_per_prompt(self, num_generations: int) -> int:
        """Return the number of examples that a round expects from the samples of one prompt."""

    @abstractmethod
    def role(self, side: int, weight: float) -> str:
        """Return the display name of a sequence: chosen, desirable, its advantage.

        Args:
            side: index of the sequence in its example.
            weight: weight of the example.
        """

    @abstractmethod
    def headings(self, row: Row) -> list[str]:
        """Return the display names of a row's completions."""

    def columns(self, weights: Sequence[float]) -> dict[str, Tensor]:
        """Return the tensors of a batch that depend on its examples' weights, [examples] each, by name."""
        return {}

    def values(self, row: Row) -> list[float]:
        """Return the labels or rewards of a row's completions; empty for a pair."""
        return row.values

    def facts(self, values: Sequence[Sequence[float]]) -> list[tuple[str, str]]:
        """Return lines of a dataset's report, as name and text, from the :meth:`values` of its rows."""
        return []

    def doubts(self, weights: Sequence[float], findings: Findings) -> None:
        """Add the findings of a dataset as a whole, from the weights of its examples."""
        return


class Pairs(Form):
    """Preference pairs: chosen and rejected completions of one prompt; of a group with rewards the best and worst."""

    types = (PREFERENCE, IMPLICIT, REWARDED, SCORED)
    sides = 2

    def converted(self, where: str, row: Row, findings: Findings) -> Row | None:
        if row.type is not REWARDED:
            return row
        chosen = best_and_worst(row.values)
        if chosen is None:
            findings.add(TIED, where)
            return None
        findings.add(PAIRED, where)
        return replace(row, type=PREFERENCE, completions=[row.completions[i] for i in chosen], values=[])

    def drafts(self, row: Row, scale_rewards: str) -> list[Draft]:
        return [Draft([0, 1])]

    def examples_of(self, prompt: Example, group: Sequence[Sample]) -> Iterator[Example]:
        """Yield the first best sample as chosen with the first worst as rejected; nothing if all rewards are equal."""
        chosen = best_and_worst([one.reward for one in group])
        if chosen:
            best, worst = (group[index].completion_ids for index in chosen)
            yield Example(prompt.prompt_ids, (best, worst))

    def examples_per_prompt(self, num_generations: int) -> int:
        return 1

    def role(self, side: int, weight: float) -> str:
        return ("chosen", "rejected")[side]

    def headings(self, row: Row) -> list[str]:
        return ["chosen", "rejected"]


class Labels(Form):
    """Desirable and undesirable completions, with weights 1 and 0. A pair gives one of each.

    The completions of a group with rewards are desirable above its mean reward and undesirable below it.
    """

    types = (UNPAIRED, PREFERENCE, IMPLICIT, REWARDED, SCORED)

    def converted(self, where: str, row: Row, findings: Findings) -> Row | None:
        if row.type is not REWARDED:
            return row
        labels = labels_of(advantages(row.values, "none"))
        if not labels:
            findings.add(TIED, where)
            return None
        findings.add(LABELLED, where, count=len(labels))
        findings.add(AT_MEAN, where, count=len(row.values) - len(labels))
        completions = [row.completions[index] for index in labels]
        return replace(row, type=UNPAIRED, completions=completions, values=[*labels.values()])

    def doubts(self, weights: Sequence[float], findings: Findings) -> None:
        if len(set(weights)) == 1:
            findings.add(ALL_DESIRABLE if weights[0] else ALL_UNDESIRABLE, count=len(weights))

    def values(self, row: Row) -> list[float]:
        return row.values or [1.0, 0.0]

    def drafts(self, row: Row, scale_rewards: str) -> list[Draft]:
        return [Draft([side], label) for side, label in enumerate(self.values(row))]

    def examples_of(self, prompt: Example, group: Sequence[Sample]) -> Iterator[Example]:
        """Yield samples above the group's mean reward as desirable and below it as undesirable; skip those at it."""
        for index, label in labels_of([one.advantage for one in group]).items():
            yield Example(prompt.prompt_ids, (group[index].completion_ids,), label)

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
    """Completions of one prompt with rewards. Each completion is an example with its advantage as weight."""

    types = (REWARDED, SCORED)
    has_rewards = True
    learns_from_ties = True
    grouped = True

    def drafts(self, row: Row, scale_rewards: str) -> list[Draft]:
        weights = advantages(row.values, scale_rewards)
        return [Draft([side], *given) for side, given in enumerate(zip(weights, row.values, strict=True))]

    def examples_of(self, prompt: Example, group: Sequence[Sample]) -> Iterator[Example]:
        """Yield every sample. Samples with equal rewards have advantage 0, and their tokens count, as in TRL."""
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
            ("  without signal", f"{ties} with equal rewards: no gradient without a KL penalty"),
        ]


PAIRS = Pairs()
"""Pairs of a chosen and a rejected completion."""
LABELS = Labels()
"""Single completions, each desirable or undesirable."""
GROUPS = Groups()
"""Several completions of one prompt, each with a reward."""
FORMS: dict[str, Form] = {"pairs": PAIRS, "labels": LABELS, "groups": GROUPS}


class Learner(Taker, Protocol):
    """Consumer of data of one form: an objective."""

    @property
    def form(self) -> Form:
        """The form of its data."""
        ...

    @property
    def mismatched(self) -> bool:
        """True if the loss also needs each prompt with the completion of another example."""
        ...


def keeps_groups(objective: Learner) -> bool:
    """Return True if the completions of one prompt stand together in a step.

    With mismatched pairs they do not: neighbours must have different prompts.
    """
    return objective.form.grouped and not objective.mismatched
