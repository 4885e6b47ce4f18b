"""Cutting a micro-batch into forward passes of at most so many tokens."""

import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.forms import Learner, keeps_groups
from humanline_fused.training.data.plan import MicroBatch


@dataclass(frozen=True)
class Unit:
    """Examples that share a forward pass.

    Attributes:
        examples, sequences: their number, and the number of their sequences in one pass.
        longest: tokens of the longest sequence.
        tokens: tokens of one row of all sequences, with the prompts that are computed once.
    """

    examples: int
    sequences: int
    longest: int
    tokens: int

    @property
    def padded(self) -> int:
        """Tokens of the sequences padded to the longest."""
        return self.sequences * self.longest

    def joined(self, other: "Unit", shared: int = 0) -> "Unit":
        """Return the unit of both; ``shared``: tokens of the prompt that they have in common."""
        return Unit(
            self.examples + other.examples,
            self.sequences + other.sequences,
            max(self.longest, other.longest),
            self.tokens + other.tokens - shared,
        )


def fill(units: Sequence[Unit], most: int, tokens: Callable[[Unit], int]) -> list[Unit]:
    """Join units, in order, to the fewest units of at most ``most`` tokens; a larger unit stays alone.

    Of these, those whose largest is the smallest, so that they have similar sizes.

    Args:
        units: units in order.
        most: maximum tokens.
        tokens: returns the tokens of a unit.

    >>> units = [Unit(1, 1, longest=0, tokens=tokens) for tokens in (6, 2, 2, 2)]
    >>> [unit.tokens for unit in fill(units, 10, lambda unit: unit.tokens)]
    [6, 6]
    """

    def filled(limit: int) -> list[Unit]:
        runs = [units[0]]
        for unit in units[1:]:
            longer = runs[-1].joined(unit)
            if tokens(longer) <= limit:
                runs[-1] = longer
            else:
                runs.append(unit)
        return runs

    fewest = len(filled(most))
    return filled(bisect_left(range(most), True, key=lambda limit: len(filled(limit)) <= fewest))


class TokenBudget:
    """Cuts micro-batches into forward passes of at most ``most`` tokens of the model's body.

    Whole units stay together: pairs, single completions, and with ``once`` the completions of one prompt. A unit with
    more tokens is a forward pass of its own; a warning says so once.

    Args:
        most: maximum tokens; None: a micro-batch is one forward pass.
        once: True if a prompt is computed once for all of its completions; False if sequences are padded.
        objective: gives the sequences of an example.
        max_length: every sequence is cut at this many tokens.
    """

    def __init__(self, most: int | None, objective: Learner, max_length: int, *, once: bool) -> None:
        self.most, self.objective, self.max_length, self.once = most, objective, max_length, once
        self.warned = False

    def cut(self, examples: Sequence[Example], micro: MicroBatch, at_least: int = 1) -> list[MicroBatch]:
        """Return the parts of a micro-batch, in order.

        Args:
            examples: the examples that the ids of ``micro`` index.
            micro: examples of one rank.
            at_least: minimum number of parts, as far as there are examples. Only for its sake a unit is cut.
        """
        if self.most is None:
            return [micro]
        filled = fill([*self._units(examples, micro)], self.most, self._tokens)
        self._warn(max(map(self._tokens, filled)))
        sizes = [unit.examples for unit in filled]
        while len(sizes) < at_least and max(sizes) > 1:
            place = sizes.index(max(sizes))
            sizes[place : place + 1] = [sizes[place] - sizes[place] // 2, sizes[place] // 2]
        bounds = [0, *accumulate(sizes)]
        return [MicroBatch(micro.ids[start:stop], micro.following[start:stop]) for start, stop in pairwise(bounds)]

    def cut_alike(self, examples: Sequence[Example], micros: Sequence[MicroBatch], rank: int) -> list[MicroBatch]:
        """Return the parts of a rank's micro-batch, as many as the rank with the most has.

        With sharded weights a forward pass is collective. A rank with too few examples repeats its last part.

        Args:
            examples: the examples that the ids index.
            micros: the micro-batches of all ranks.
            rank: rank of this process.
        """
        number = max(len(self.cut(examples, micro)) for micro in micros)
        mine = self.cut(examples, micros[rank], number)
        return mine + mine[-1:] * (number - len(mine))

    def _tokens(self, unit: Unit) -> int:
        return unit.tokens if self.once else unit.padded

    def _units(self, examples: Sequence[Example], micro: MicroBatch) -> Iterator[Unit]:
        """Yield the units of a micro-batch. Upper bounds: sequences may have more in common than a prompt."""
        together, unit, before = self.once and keeps_groups(self.objective), None, None
        for number, following in zip(micro.ids, micro.following, strict=True):
            example = examples[number]
            completions = list(map(len, example.completions))
            if self.objective.mismatched:
                completions.append(len(examples[following].completions[0]))
            prompt = len(example.prompt_ids)
            lengths = [min(prompt + completion, self.max_length) for completion in completions]
            # A sequence's last token scores nothing, so a row does not hold it.
            own = prompt + sum(max(length - 1 - prompt, 0) for length in lengths)
            mine = Unit(1, self.objective.form.sides, max(lengths), own)
            if unit is not None and together and before is not None and torch.equal(before, example.prompt_ids):
                unit = unit.joined(mine, shared=prompt)
                continue
            if unit is not None:
                yield unit
            unit, before = mine, example.prompt_ids
        if unit is not None:
            yield unit

    def _warn(self, largest: int) -> None:
        assert self.most is not None
        if largest > self.most and not self.warned:
            self.warned = True
            kept = "the completions of one prompt" if self.once else "the sequences of one example"
            warnings.warn(
                f"max_tokens_per_micro_batch={self.most}: {kept} have {largest} tokens. Such a unit is a forward pass "
                "of its own",
                stacklevel=2,
            )
