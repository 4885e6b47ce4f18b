"""Look-ahead scores of coming steps, stored in checkpoints by example so that any number of processes can resume."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.training.data.batch import length_of, sequences
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.forms import Learner
from humanline_fused.training.data.plan import MicroBatch

ByExample = dict[int, dict[str, list[Tensor]]]
"""Scores by example id, then by name: one tensor [T] for each sequence of the example, without padding, float32, nats,
on the CPU."""

NAMES = {"": ("ref_logp", "ref_entropy"), "kl_": ("kl_ref_logp",)}
"""Names of the scores of each forward pass. Checkpoints of earlier versions have no entropies."""


def by_example(
    scored: Sequence[TokenScores],
    window: Sequence[MicroBatch],
    examples: Sequence[Example],
    objective: Learner,
    max_length: int,
) -> ByExample:
    """Split one step's scores of one rank into scores by example."""
    taken: ByExample = {}
    for scores, micro in zip(scored, window, strict=True):
        for prefix, given in sequences(examples, micro, objective):
            for name in (name for name in NAMES[prefix] if name in scores):
                for row, (parts, values) in enumerate(zip(given, scores[name].cpu(), strict=True)):
                    example = taken.setdefault(micro.ids[row % len(micro.ids)], {})
                    example.setdefault(name, []).append(values[: length_of(parts, max_length)].clone())
    return taken


def in_batches(
    taken: Mapping[int, Mapping[str, list[Tensor]]], window: Sequence[MicroBatch], objective: Learner
) -> list[TokenScores]:
    """Return one step's scores for the micro-batches of one rank, right-padded with 0.

    Entropies are left out if the scores have none.

    Raises:
        KeyError: an example of ``window`` has no scores.
    """
    scored = []
    for micro in window:
        scores: TokenScores = {}
        names = ["ref_logp", *(["kl_ref_logp"] if objective.mismatched else [])]
        for name in [*names, *(["ref_entropy"] if "ref_entropy" in taken[micro.ids[0]] else [])]:
            sides = zip(*(taken[i][name] for i in micro.ids), strict=True)
            rows = [values for side in sides for values in side]
            scores[name] = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        scored.append(scores)
    return scored


def joined(parts: Sequence[Mapping[int, ByExample]]) -> dict[int, ByExample]:
    """Merge the pending steps of all ranks."""
    steps = sorted({step for part in parts for step in part})
    return {step: {i: s for part in parts for i, s in part[step].items()} for step in steps}
