"""Batches of an optimizer step on one rank: made once, for scoring and for training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.training import pending
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.advantages import batch_scale
from humanline_fused.training.data.batch import Batch, Layout, collate, num_loss_tokens
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.plan import MicroBatch, StepPlan
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.pending import ByExample
from humanline_fused.training.run_data import scales_by_batch


class Windows:
    """Makes the batches of steps, and keeps those of the current step and the next.

    So scoring and training use the same tensors. Keeping all k steps of a look-ahead could mean keeping the whole run.

    Args:
        config, objective: the settings of the run.
        plan: the examples of each step.
        examples: returns the examples that the plan's ids index.
        pad_token_id: the id for padding.

    Attributes:
        layout: how a batch's sequences stand in the model's input; ``padded`` until :meth:`use`.
    """

    def __init__(
        self,
        config: HumanlineConfig,
        objective: Objective,
        plan: StepPlan,
        examples: Callable[[], Sequence[Example]],
        pad_token_id: int,
    ) -> None:
        self.config, self.objective, self.plan = config, objective, plan
        self.examples, self.pad_token_id = examples, pad_token_id
        self.layout: Layout = "padded"
        self._kept: dict[int, list[Batch]] = {}

    def use(self, layout: Layout) -> StepPlan:
        """Make the coming batches in this layout; return the plan, which cuts the steps."""
        self.layout = layout
        if layout == "sorted":
            plan: Any = self.plan  # a dataclass
            self.plan = replace(plan, lengths=self._lengths)
        self.clear()
        return self.plan

    def _lengths(self, ids: Sequence[int]) -> list[int]:
        """Return the length of the longest sequence of each example, tokens."""
        given, most = [self.examples()[i] for i in ids], self.config.max_length
        return [min(len(e.prompt_ids) + max(map(len, e.completions)), most) for e in given]

    def clear(self) -> None:
        """Forget the batches that were made: their examples have changed."""
        self._kept = {}

    def collate(self, examples: Sequence[Example], micro: MicroBatch) -> Batch:
        """Return the batch of a micro-batch on this process's device."""
        sizes = {"pad_token_id": self.pad_token_id, "max_length": self.config.max_length}
        batch = collate(examples, micro, self.objective, layout=self.layout, **sizes)
        return batch.to(self.config.device)

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of a step."""
        return self.plan.window(step, self.config.process_index)

    def window(self, step: int, now: int) -> list[Batch]:
        """Return this rank's batches of a step, one for each of :meth:`micro_batches`.

        Args:
            step: the step.
            now: the current step.
        """
        if step in self._kept:
            return self._kept[step]
        window = [self.collate(self.examples(), micro) for micro in self.micro_batches(step)]
        if self._train_together(step):
            window = [replace(batch, trains_together=True) for batch in window]
        if step <= now + 1:
            self._kept = {s: kept for s, kept in self._kept.items() if s >= now} | {step: window}
        return window

    def _train_together(self, step: int) -> bool:
        """Return whether one body for a micro-batch and its mismatched pairs costs fewer token passes in training.

        With P tokens of prompts and C of completions it costs 3 (P + 2 C), and two bodies cost 3 (P + C) + (P + C): a
        pass without gradient is a third of one with it. All ranks must agree, so this counts the whole step. A model
        with dropout has no shared prompts, so that both kinds of pass score alike.
        """
        if self.layout != "shared_prompt" or not self.objective.mismatched:
            return False
        examples = self.everything(step)
        prompts = sum(len(example.prompt_ids) for example in examples)
        return prompts > 2 * sum(len(example.completions[0]) for example in examples)

    def everything(self, step: int) -> list[Example]:
        """Return the examples of a step on all ranks."""
        examples = self.examples()
        return [examples[i] for ids in self.plan.global_window(step) for i in ids]

    def inputs(self, step: int, scores: Sequence[TokenScores]) -> list[Batch]:
        """Return the batches of the current step with the reference's scores and the divisors of their losses."""
        window, examples = self.window(step, step), self.everything(step)
        # Trainer averages over micro-batches and DDP over ranks, so this divisor gives the mean over the step.
        per_micro_batch = sum(map(num_loss_tokens, examples)) / (len(window) * self.config.world_size)
        num_items = torch.full((), per_micro_batch, device=self.config.device)
        inputs = [
            replace(batch.with_scores(scored), num_items=num_items)
            for batch, scored in zip(window, scores, strict=True)
        ]
        if scales_by_batch(self.config, self.objective):
            scale = batch_scale([example.reward for example in examples])
            inputs = [replace(b, columns={name: c / scale for name, c in b.columns.items()}) for b in inputs]
        return inputs

    def by_example(self, steps: Mapping[int, Sequence[TokenScores]]) -> dict[int, ByExample]:
        """Return the scores of this rank's batches of steps by example."""
        given = self.examples(), self.objective, self.config.max_length
        return {step: pending.by_example(scores, self.micro_batches(step), *given) for step, scores in steps.items()}

    def in_batches(self, steps: Mapping[int, ByExample]) -> dict[int, list[TokenScores]]:
        """Return scores by example of steps as those of this rank's batches."""
        given = self.examples(), self.objective, self.config.max_length
        return {step: pending.in_batches(scores, self.micro_batches(step), *given) for step, scores in steps.items()}
