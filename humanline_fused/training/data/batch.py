"""Tensors of one forward pass and of its loss, made from examples."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.forms import Learner
from humanline_fused.training.data.plan import MicroBatch
from humanline_fused.types import HumanlineSampling


@dataclass(frozen=True, eq=False)
class Batch:
    """The model's input, and the packed tokens of a loss: those of its S sequences that count, one after the other.

    transformers' Trainer looks up ``input_ids`` by name, with ``in`` and ``[]``.

    Attributes:
        input_ids: [B, T], int64: the model's input, right-padded sequences.
        source: [n], int64, always on the CPU: the rows ``b · T + t`` of the model's output that score the n tokens.
        target_ids: [1, n], int64: the tokens.
        cu_seqlens: [S + 1], int64, always on the CPU: sequence s is the tokens from ``cu_seqlens[s]`` to
            ``cu_seqlens[s + 1]``. None of them may count.
        columns: tensors with one entry per example, by name: ``desirable`` (bool) for labelled data,
            ``advantages`` (float32) for groups.
        kl: the mismatched pairs of the same examples, for an objective that scores them; else None.
        ref_logp: [1, n], float32, nats: the reference's log-probs; None before scoring.
        ref_entropy: [1, n], float32, nats: the reference's entropies; None if they were not scored.
        num_items: []: the divisor of a sum over tokens: tokens of the optimizer step, averaged over its
            micro-batches.
        sampling: draws and maxima of humanline sampling; None with the clamp and in evaluation.
        index: position of the micro-batch in an evaluation.
        repeated: True if the micro-batch is a repetition that does not count.
    """

    input_ids: Tensor
    source: Tensor
    target_ids: Tensor
    cu_seqlens: Tensor
    columns: dict[str, Tensor]
    kl: "Batch | None" = None
    ref_logp: Tensor | None = None
    ref_entropy: Tensor | None = None
    num_items: Tensor | None = None
    sampling: HumanlineSampling | None = None
    index: int | None = None
    repeated: bool = False

    def __contains__(self, name: object) -> bool:
        return any(field.name == name for field in fields(self)) and getattr(self, str(name)) is not None

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    @property
    def passes(self) -> "dict[str, Batch]":
        """The forward passes by the prefix of their scores' names: "" for this one, ``kl_`` for mismatched pairs."""
        return {"": self} if self.kl is None else {"": self, "kl_": self.kl}

    @property
    def loss_mask(self) -> Tensor:
        """[1, n], bool, True: every token of a batch counts."""
        return torch.ones_like(self.target_ids, dtype=torch.bool)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device. ``source`` and ``cu_seqlens`` stay, so that the host need not wait for them."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        tensors = {
            name: move(getattr(self, name))
            for name in ("input_ids", "target_ids", "ref_logp", "ref_entropy", "num_items")
            if getattr(self, name) is not None
        }
        columns = {name: move(tensor) for name, tensor in self.columns.items()}
        return replace(self, **tensors, columns=columns, kl=None if self.kl is None else self.kl.to(device))

    def with_scores(self, scores: dict[str, Tensor]) -> "Batch":
        """Return the batch with the reference's scores.

        These are ``ref_logp``, ``kl_ref_logp`` for mismatched pairs, and ``ref_entropy`` if it was scored.
        """
        scores = {name: values.to(self.input_ids.device, non_blocking=True) for name, values in scores.items()}
        kl = None if self.kl is None else replace(self.kl, ref_logp=scores["kl_ref_logp"])
        return replace(self, ref_logp=scores["ref_logp"], ref_entropy=scores.get("ref_entropy"), kl=kl)


class Parts(NamedTuple):
    """Prompt and completion of a sequence, and the completion's mask; None if all of its tokens count."""

    prompt: Tensor
    completion: Tensor
    mask: Tensor | None = None

    def token_ids(self, max_length: int) -> np.ndarray:
        """Return the token ids, cut at ``max_length``, int64."""
        return np.concatenate([self.prompt.numpy(), self.completion.numpy()])[:max_length].astype(np.int64)

    def scoring(self, max_length: int) -> np.ndarray:
        """Return the places in the sequence whose next token counts, ascending, int64. The first token never counts."""
        begin = len(self.prompt)
        counted = np.arange(len(self.completion)) if self.mask is None else np.flatnonzero(self.mask.numpy())
        places = counted + (begin - 1)
        return places[(places >= 0) & (places < max_length - 1)]


class Sequences(NamedTuple):
    """The sequences of one forward pass; sequence i belongs to example ``ids[i % len(ids)]``."""

    prefix: str
    parts: list[Parts]


def sequences(examples: Sequence[Example], micro: MicroBatch, objective: Learner) -> list[Sequences]:
    """Return the sequences of a micro-batch's forward passes.

    In a batch of pairs the first half is chosen, the second half rejected. Mismatched pairs are a second pass, ``kl_``:
    each prompt with the completion of the next example in the global micro-batch (arXiv 2509.24207, section 4).
    """
    rows, sides = [examples[i] for i in micro.ids], range(objective.form.sides)
    passes = [Sequences("", [Parts(row.prompt_ids, *row.sides[side]) for side in sides for row in rows])]
    if objective.mismatched:
        following = [examples[i] for i in micro.following]
        parts = [Parts(row.prompt_ids, *other.sides[0]) for row, other in zip(rows, following, strict=True)]
        passes.append(Sequences("kl_", parts))
    return passes


def pad(given: Sequence[Parts], pad_token_id: int, max_length: int, columns: dict[str, Tensor]) -> Batch:
    """Cut sequences at ``max_length`` tokens, and right-pad them to the longest."""
    ids = [parts.token_ids(max_length) for parts in given]
    scoring = [parts.scoring(max_length) for parts in given]
    # numpy: its small assignments cost a tenth of torch's, and its count does not look like a wait for a device.
    input_ids = np.full((len(given), max(map(len, ids))), pad_token_id, dtype=np.int64)
    for row, tokens in zip(input_ids, ids, strict=True):
        row[: len(tokens)] = tokens
    width = input_ids.shape[1]
    source = np.concatenate([number * width + places for number, places in enumerate(scoring)])
    bounds = np.cumsum([0, *map(len, scoring)])
    targets = input_ids.reshape(-1)[source + 1][None]
    return Batch(*map(torch.from_numpy, (input_ids, source, targets, bounds)), columns)


def collate(
    examples: Sequence[Example],
    micro: MicroBatch,
    objective: Learner,
    *,
    pad_token_id: int,
    max_length: int,
) -> Batch:
    """Return the batch of one micro-batch, a pure function of the arguments."""
    columns = objective.form.columns([examples[i].weight for i in micro.ids])
    first, *rest = (
        pad(part.parts, pad_token_id, max_length, {} if part.prefix else columns)
        for part in sequences(examples, micro, objective)
    )
    return replace(first, kl=rest[0]) if rest else first


def num_loss_tokens(example: Example) -> int:
    """Return the number of completion tokens that a loss counts: those of the mask, without a sequence's first."""
    first = int(len(example.prompt_ids) == 0)
    return sum(
        len(c[first:]) if mask is None else int(np.count_nonzero(mask.numpy()[first:])) for c, mask in example.sides
    )
