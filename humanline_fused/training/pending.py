"""Scores stored by example, so that another cut, layout or number of processes can read them."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.training.data.batch import Parts, sequences
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.forms import Learner
from humanline_fused.training.data.plan import MicroBatch

ByExample = dict[int, dict[str, list[Tensor]]]
"""Scores by example id, then by name: one tensor [n] for each sequence of the example, over its tokens that count,
float32, nats, on the CPU."""

NAMES = {"": ("ref_logp", "ref_entropy"), "kl_": ("kl_ref_logp",)}
"""Names of the scores of each forward pass. Checkpoints of earlier versions have no entropies."""


def by_example(
    scored: Sequence[TokenScores],
    window: Sequence[MicroBatch],
    examples: Sequence[Example],
    objective: Learner,
    max_length: int,
) -> ByExample:
    """Split the scores of micro-batches, [1, n], into scores by example."""

    def split(values: Tensor, given: Sequence[Parts]) -> Sequence[Tensor]:
        return [part.clone() for part in values[0].cpu().split([len(parts.scoring(max_length)) for parts in given])]

    return _by_example(zip(scored, window, strict=True), examples, objective, split)


def _by_example(
    scored: Iterable[tuple[TokenScores, MicroBatch]],
    examples: Sequence[Example],
    objective: Learner,
    split: Callable[[Tensor, Sequence[Parts]], Sequence[Tensor]],
) -> ByExample:
    """Return scores by example, with a function that splits those of a forward pass by sequence."""
    taken: ByExample = {}
    for scores, micro in scored:
        for prefix, given in sequences(examples, micro, objective):
            for name in (name for name in NAMES[prefix] if name in scores):
                for row, values in enumerate(split(scores[name], given)):
                    example = taken.setdefault(micro.ids[row % len(micro.ids)], {})
                    example.setdefault(name, []).append(values)
    return taken


def of_counted(
    taken: Mapping[int, Mapping[str, list[Tensor]]],
    window: Sequence[MicroBatch],
    examples: Sequence[Example],
    objective: Learner,
    max_length: int,
) -> ByExample:
    """Return the scores of a window's examples over the tokens that count.

    Earlier versions stored a score for every token of a sequence, 0 where it does not count.

    Raises:
        KeyError: an example of ``window`` has no scores.
        ValueError: they are those of other tokens.
    """
    found: ByExample = {i: {} for micro in window for i in micro.ids}
    for micro in window:
        for prefix, given in sequences(examples, micro, objective):
            for name in (name for name in NAMES[prefix] if name in taken[micro.ids[0]]):
                for row, parts in enumerate(given):
                    side, place = divmod(row, len(micro.ids))
                    values = taken[micro.ids[place]][name][side]
                    counted = _counted(values, parts, max_length)
                    found[micro.ids[place]].setdefault(name, []).append(counted)
    return found


def of_padded(
    scored: Sequence[TokenScores],
    window: Sequence[MicroBatch],
    examples: Sequence[Example],
    objective: Learner,
    max_length: int,
) -> ByExample:
    """Return scores by example of scores [B, T] over all tokens of micro-batches: an earlier version's form."""

    def split(values: Tensor, given: Sequence[Parts]) -> Sequence[Tensor]:
        return [row[parts.scoring(max_length)] for parts, row in zip(given, values, strict=True)]

    return _by_example(zip(scored, window, strict=False), examples, objective, split)


def _counted(values: Tensor, parts: Parts, max_length: int) -> Tensor:
    places, length = parts.scoring(max_length), len(parts.token_ids(max_length))
    if len(values) == length:  # at most length - 1 tokens count
        return values[places]
    if len(values) != len(places):
        raise ValueError(f"expected scores of {len(places)} tokens, got {len(values)}: they belong to other data")
    return values


def in_batches(
    taken: Mapping[int, Mapping[str, list[Tensor]]],
    window: Sequence[MicroBatch],
    examples: Sequence[Example],
    objective: Learner,
    max_length: int,
) -> list[TokenScores]:
    """Return the scores of micro-batches, [1, n]. Entropies are left out if the scores have none.

    Raises:
        KeyError, ValueError: as :func:`of_counted`.
    """
    counted = of_counted(taken, window, examples, objective, max_length)
    scored = []
    for micro in window:
        sides = {name: zip(*(counted[i][name] for i in micro.ids), strict=True) for name in counted[micro.ids[0]]}
        scored.append({name: torch.cat([v for side in given for v in side])[None] for name, given in sides.items()})
    return scored


def merged(parts: Sequence[Mapping[int, ByExample]]) -> dict[int, ByExample]:
    """Merge the pending steps of all ranks."""
    steps = sorted({step for part in parts for step in part})
    return {step: {i: s for part in parts for i, s in part[step].items()} for step in steps}
