"""Scores that wait for their step, by example instead of by batch: what any number of processes can continue from."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.training.data.batch import length_of, sequences
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.forms import Learner
from humanline_fused.training.data.plan import MicroBatch

ByExample = dict[int, dict[str, list[Tensor]]]
"""By example id, then by name (``ref_logp``, ``kl_ref_logp``): a [T] for each of the example's sequences, without
padding, float32, nats, on the CPU."""


def by_example(
    scored: Sequence[TokenScores],
    window: Sequence[MicroBatch],
    examples: Sequence[Example],
    objective: Learner,
    max_length: int,
) -> ByExample:
    """Take one step's scores of one rank apart."""
    taken: ByExample = {}
    for scores, micro in zip(scored, window, strict=True):
        for prefix, pairs in sequences(examples, micro, objective):
            name = f"{prefix}ref_logp"
            for row, (pair, logp) in enumerate(zip(pairs, scores[name].cpu(), strict=True)):
                example = taken.setdefault(micro.ids[row % len(micro.ids)], {})
                example.setdefault(name, []).append(logp[: length_of(*pair, max_length)].clone())
    return taken


def in_batches(
    taken: Mapping[int, Mapping[str, list[Tensor]]], window: Sequence[MicroBatch], objective: Learner
) -> list[TokenScores]:
    """Put one step's scores together again for one rank, right-padded with 0.

    Raises:
        KeyError: an example of ``window`` has no scores.
    """
    scored = []
    for micro in window:
        scores: TokenScores = {}
        for name in ("ref_logp", "kl_ref_logp") if objective.mismatched else ("ref_logp",):
            sides = zip(*(taken[i][name] for i in micro.ids), strict=True)
            rows = [logp for side in sides for logp in side]
            scores[name] = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        scored.append(scores)
    return scored


def joined(parts: Sequence[Mapping[int, ByExample]]) -> dict[int, ByExample]:
    """The pending steps of all ranks together."""
    steps = sorted({step for part in parts for step in part})
    return {step: {i: s for part in parts for i, s in part[step].items()} for step in steps}
