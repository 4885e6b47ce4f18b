"""Tensors of one forward pass and of its loss, made from examples."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from humanline_fused.model.prefix_tree import PrefixTree, prefix_tree
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.forms import Learner
from humanline_fused.training.data.plan import MicroBatch
from humanline_fused.types import HumanlineSampling

Layout = Literal["shared_prompt", "sorted", "padded"]
"""How the sequences of a batch stand in the model's input: each shared prefix once, or every sequence in a row of its
own. ``sorted`` is ``padded`` with sequences of similar length."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A body, the input of one forward pass, and the packed tokens of a loss: those of S sequences that count.

    transformers' Trainer looks up ``input_ids`` by name, with ``in`` and ``[]``.

    Attributes:
        input_ids: [B, T], int64: right-padded sequences; or [1, N], the row of ``tree``.
        source: [n], int64, always on the CPU: the rows ``b · T + t`` of the model's output that score the n tokens. A
            row may score several.
        target_ids: [1, n], int64: the tokens.
        cu_seqlens: [S + 1], int64, always on the CPU: sequence s is the tokens from ``cu_seqlens[s]`` to
            ``cu_seqlens[s + 1]``. None of them may count.
        columns: tensors with one entry per example, by name: ``desirable`` (bool) for labelled data,
            ``advantages`` (float32) for groups.
        tree: the prefixes that sequences share in the row, always on the CPU; None for padded sequences.
        kl: the mismatched pairs of the same examples, for an objective that scores them; else None.
        together: the tokens of this batch and then of ``kl`` with one body for both, if that has shared prompts.
        trains_together: True if training computes ``together`` too, with a gradient of the first tokens alone.
        ref_logp: [1, n], float32, nats: the reference's log-probs; None before scoring.
        ref_entropy: [1, n], float32, nats: the reference's entropies; None if they were not scored.
        num_items: []: the divisor of a sum over tokens: tokens of the optimizer step, averaged over its
            micro-batches.
        sampling: draws and maxima of humanline sampling; None with the clamp and in evaluation.
        index: position of the micro-batch in an evaluation.
        repeated: True if the micro-batch is a repetition that does not count.
        share: of the part of a micro-batch: the share of its loss in the micro-batch's loss; else 1.
        z0: [], nats: of the part of a micro-batch: the mean log-ratio of all of the micro-batch's mismatched pairs.
    """

    input_ids: Tensor
    source: Tensor
    target_ids: Tensor
    cu_seqlens: Tensor
    columns: dict[str, Tensor]
    tree: PrefixTree | None = None
    kl: "Batch | None" = None
    together: "Batch | None" = None
    trains_together: bool = False
    ref_logp: Tensor | None = None
    ref_entropy: Tensor | None = None
    num_items: Tensor | None = None
    sampling: HumanlineSampling | None = None
    index: int | None = None
    repeated: bool = False
    share: float = 1.0
    z0: Tensor | None = None

    def __contains__(self, name: object) -> bool:
        return any(field.name == name for field in fields(self)) and getattr(self, str(name)) is not None

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    @property
    def passes(self) -> "dict[str, Batch]":
        """The tokens by the prefix of their scores' names: "" for this batch's, ``kl_`` for mismatched pairs."""
        return {"": self} if self.kl is None else {"": self, "kl_": self.kl}

    @property
    def forwards(self) -> int:
        """The number of forward passes: one or two for the reference's scores, and one or two in training."""
        if self.kl is None:
            return 2
        return (2 if self.together is None else 1) + (1 if self.trains_together else 2)

    @property
    def alone(self) -> "Batch":
        """The batch without its mismatched pairs."""
        return replace(self, kl=None, together=None)

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
        parts = {name: part.to(device) for name in ("kl", "together") if (part := getattr(self, name)) is not None}
        return replace(self, **tensors, columns=columns, **parts)

    def with_scores(self, scores: dict[str, Tensor]) -> "Batch":
        """Return the batch with the reference's scores.

        These are ``ref_logp``, ``kl_ref_logp`` for mismatched pairs, and ``ref_entropy`` if it was scored.
        """
        scores = {name: values.to(self.input_ids.device, non_blocking=True) for name, values in scores.items()}
        kl = None if self.kl is None else replace(self.kl, ref_logp=scores["kl_ref_logp"])
        return replace(self, ref_logp=scores["ref_logp"], ref_entropy=scores.get("ref_entropy"), kl=kl)


@dataclass(frozen=True, eq=False)
class CutBatch:
    """A micro-batch as several batches, a forward pass each. The sum of their losses, by share, is its loss.

    transformers' Trainer counts the elements of ``input_ids``, which it looks up as in :class:`Batch`.
    """

    parts: tuple[Batch, ...]

    def __contains__(self, name: object) -> bool:
        return name == "input_ids"

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat([part[name].flatten() for part in self.parts])


def concatenated(batches: Sequence[Batch]) -> Batch:
    """Return the tokens of several batches with their reference's log-probs as those of one, without its input."""
    bounds = torch.cat([batch.cu_seqlens.diff() for batch in batches]).cumsum(0)
    return replace(
        batches[0],
        target_ids=torch.cat([batch.target_ids for batch in batches], dim=1),
        cu_seqlens=torch.cat([bounds.new_zeros(1), bounds]),
        ref_logp=torch.cat([batch["ref_logp"] for batch in batches], dim=1),
    )


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
    """The sequences of one loss; sequence i belongs to example ``ids[i % len(ids)]``."""

    prefix: str
    parts: list[Parts]


def sequences(examples: Sequence[Example], micro: MicroBatch, objective: Learner) -> list[Sequences]:
    """Return the sequences of a micro-batch.

    In a batch of pairs the first half is chosen, the second half rejected. Mismatched pairs are a second part, ``kl_``:
    each prompt with the completion of the next example in the global micro-batch (arXiv 2509.24207, section 4).
    """
    rows, sides = [examples[i] for i in micro.ids], range(objective.form.sides)
    passes = [Sequences("", [Parts(row.prompt_ids, *row.sides[side]) for side in sides for row in rows])]
    if objective.mismatched:
        following = [examples[i] for i in micro.following]
        parts = [Parts(row.prompt_ids, *other.sides[0]) for row, other in zip(rows, following, strict=True)]
        passes.append(Sequences("kl_", parts))
    return passes


def padded_rows(given: Sequence[Parts], pad_token_id: int, max_length: int) -> Batch:
    """Cut sequences at ``max_length`` tokens, and right-pad them to the longest."""
    ids = [parts.token_ids(max_length) for parts in given]
    # numpy: its small assignments cost a tenth of torch's, and its count does not look like a wait for a device.
    rows = np.full((len(given), max(map(len, ids))), pad_token_id, dtype=np.int64)
    for row, tokens in zip(rows, ids, strict=True):
        row[: len(tokens)] = tokens
    width = rows.shape[1]
    scoring = [parts.scoring(max_length) for parts in given]
    source = [number * width + places for number, places in enumerate(scoring)]
    return _batch(torch.from_numpy(rows), ids, scoring, source)


def shared_row(given: Sequence[Parts], max_length: int) -> Batch:
    """Cut sequences at ``max_length`` tokens, and put them into one row with each shared prefix once.

    The tokens behind the last that scores one are left out.
    """
    ids = [parts.token_ids(max_length) for parts in given]
    scoring = [parts.scoring(max_length) for parts in given]
    needed = [tokens[: places[-1] + 1 if len(places) else 0] for tokens, places in zip(ids, scoring, strict=True)]
    if not any(map(len, needed)):
        needed[0] = ids[0][:1]  # a model takes no empty row
    tree = prefix_tree(needed)
    source = [rows.numpy()[places] for rows, places in zip(tree.rows, scoring, strict=True)]
    return replace(_batch(tree.input_ids, ids, scoring, source), tree=tree)


def _batch(body: Tensor, ids: list[np.ndarray], scoring: list[np.ndarray], source: list[np.ndarray]) -> Batch:
    targets = np.concatenate([tokens[places + 1] for tokens, places in zip(ids, scoring, strict=True)])
    bounds = np.cumsum([0, *map(len, scoring)])
    return Batch(body, *map(torch.from_numpy, (np.concatenate(source), targets[None], bounds)), columns={})


def collate(
    examples: Sequence[Example],
    micro: MicroBatch,
    objective: Learner,
    *,
    pad_token_id: int,
    max_length: int,
    layout: Layout = "padded",
) -> Batch:
    """Return the batch of one micro-batch, a pure function of the arguments."""
    given = [part.parts for part in sequences(examples, micro, objective)]
    if layout == "shared_prompt":
        batch, *rest = (shared_row(parts, max_length) for parts in given)
        together = shared_row([parts for part in given for parts in part], max_length) if rest else None
    else:
        batch, *rest = (padded_rows(parts, pad_token_id, max_length) for parts in given)
        together = None
    columns = objective.form.columns([examples[i].weight for i in micro.ids])
    return replace(batch, columns=columns, kl=rest[0] if rest else None, together=together)


def num_loss_tokens(example: Example) -> int:
    """Return the number of completion tokens that a loss counts: those of the mask, without a sequence's first."""
    first = int(len(example.prompt_ids) == 0)
    return sum(
        len(c[first:]) if mask is None else int(np.count_nonzero(mask.numpy()[first:])) for c, mask in example.sides
    )
