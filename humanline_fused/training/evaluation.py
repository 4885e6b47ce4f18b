"""Held-out data under the policy at the start of the run and as it stands; no second model is kept for it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.training.batch import Batch
from humanline_fused.training.data import Example
from humanline_fused.training.initial_scores import InitialScores
from humanline_fused.training.plan import MicroBatch, evaluation_plan


class HeldOut:
    """This rank's share of the held-out data, scored by the policy before its first step.

    Args:
        examples: all of them; none where the run has no held-out data.
        collate: makes the batch of a micro-batch of them.
        initial: their scores, made once and kept with the run.
        batch_size: examples of a micro-batch.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        collate: Callable[[Sequence[Example], MicroBatch], Batch],
        initial: InitialScores,
        batch_size: int,
    ) -> None:
        self.examples = examples
        self.initial = initial
        self.collate = collate
        self.dealt = evaluation_plan(len(examples), batch_size, initial.rank, initial.world_size)

    def score(
        self,
        model: nn.Module,
        score: Callable[[nn.Module, list[Batch]], list[TokenScores]],
        *,
        fresh: bool,
        keep: bool,
    ) -> None:
        """Have the initial scores: those that are known, else the run's, else from ``model`` as it is. A collective.

        Args:
            model, score: who scores, and how.
            fresh: a run is about to take its first step: what its folder holds is an earlier run's.
            keep: write what was made here into the run's folder.
        """
        if self.initial.scores is not None or not self.examples:
            return
        if not fresh and self.initial.file.is_file():
            self.initial.load()
            return
        self.initial.make(score(model, [self.collate(self.examples, micro)])[0] for micro, _ in self.dealt)
        if keep:
            self.initial.save()

    def dataloader(self) -> DataLoader:
        """This rank's micro-batches, in order: ``index`` says which, ``repeated`` marks what does not count."""

        def batch(index: Any) -> Batch:
            micro, counts = self.dealt[index]
            flag = {} if counts else {"repeated": torch.tensor(True)}
            return self.collate(self.examples, micro) | {"index": torch.tensor(index)} | flag

        positions: Any = range(len(self.dealt))
        return DataLoader(positions, batch_size=None, collate_fn=batch, generator=torch.Generator())
