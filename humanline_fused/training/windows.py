"""Batches of an optimizer step on one rank: made once, for scoring and for training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.training import pending
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.advantages import batch_scale
from humanline_fused.training.data.batch import Batch, CutBatch, Layout, collate, num_loss_tokens
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.plan import MicroBatch, StepPlan
from humanline_fused.training.data.token_budget import TokenBudget
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.pending import ByExample
from humanline_fused.training.run_data import scales_by_batch


def as_one(objective: Objective, parts: Sequence[Batch]) -> Batch | CutBatch:
    """Return the parts of a micro-batch with the shares of their losses.

    A loss is a mean over the pairs or sequences that count, or over the tokens, or a sum over tokens with a divisor. A
    part whose share is 0 keeps it.
    """
    if len(parts) == 1:
        return parts[0]
    if objective.token_mean and parts[0].num_items is not None:
        return CutBatch(tuple(parts))
    counts = [_counted(objective, part) if part.share else 0 for part in parts]
    total = max(sum(counts), 1)
    return CutBatch(tuple(replace(part, share=count / total) for part, count in zip(parts, counts, strict=True)))


def _counted(objective: Objective, batch: Batch) -> int:
    if objective.token_mean:
        return batch.target_ids.shape[1]
    return int((batch.cu_seqlens.diff().view(objective.form.sides, -1) > 0).any(0).sum())


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
        budget: cuts micro-batches into parts, a forward pass each.
        alike: True if all ranks have the same number of parts.
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
        self.budget, self.alike = self._budget(), False
        self._kept: dict[int, list[Batch]] = {}

    def use(self, layout: Layout, *, alike: bool) -> StepPlan:
        """Make the coming batches in this layout; return the plan, which cuts the steps.

        Args:
            layout: the layout.
            alike: give all ranks the same number of parts, because each forward pass is collective.
        """
        self.layout, self.alike = layout, alike
        self.budget = self._budget()
        if layout == "sorted":
            plan: Any = self.plan  # a dataclass
            self.plan = replace(plan, lengths=self._lengths)
        self.clear()
        return self.plan

    def _budget(self) -> TokenBudget:
        most, length = self.config.max_tokens_per_micro_batch, self.config.max_length
        return TokenBudget(most, self.objective, length, once=self.layout == "shared_prompt")

    def _lengths(self, ids: Sequence[int]) -> list[int]:
        """Return the length of the longest sequence of each example, tokens."""
        examples, most = self.examples(), self.config.max_length
        return [min(examples[i].length, most) for i in ids]

    def clear(self) -> None:
        """Forget the batches that were made: their examples have changed."""
        self._kept = {}

    def collate(self, examples: Sequence[Example], micro: MicroBatch) -> Batch:
        """Return the batch of a micro-batch on this process's device."""
        sizes = {"pad_token_id": self.pad_token_id, "max_length": self.config.max_length}
        batch = collate(examples, micro, self.objective, layout=self.layout, **sizes)
        return batch.to(self.config.device)

    def parts(self, step: int) -> list[list[MicroBatch]]:
        """Return the parts of each of this rank's micro-batches of a step; one part if there is no token budget."""
        examples, rank = self.examples(), self.config.process_index
        if not self.alike:
            return [self.budget.cut(examples, micro) for micro in self.plan.window(step, rank)]
        windows = [self.plan.window(step, other) for other in range(self.plan.sizes.world_size)]
        return [self.budget.cut_alike(examples, micros, rank) for micros in zip(*windows, strict=True)]

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """Return the parts of all of this rank's micro-batches of a step."""
        return [part for parts in self.parts(step) for part in parts]

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
        if self.budget.most is not None:  # a part needs the reference point of all of its micro-batch
            windows = [self.plan.window(step, rank) for rank in range(self.plan.sizes.world_size)]
            micros = [micro for window in windows for micro in window]
            if any(len(self.budget.cut(self.examples(), micro)) > 1 for micro in micros):
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
        accumulation, ranks = self.plan.sizes.accumulation, self.plan.sizes.world_size
        per_micro_batch = sum(map(num_loss_tokens, examples)) / (accumulation * ranks)
        # Any divisor is right where no token counts.
        num_items = torch.full((), per_micro_batch or 1.0, device=self.config.device)
        inputs = [
            replace(batch.with_scores(scored), num_items=num_items)
            for batch, scored in zip(window, scores, strict=True)
        ]
        if scales_by_batch(self.config, self.objective):
            scale = batch_scale([example.reward for example in examples])
            inputs = [replace(b, columns={name: c / scale for name, c in b.columns.items()}) for b in inputs]
        return inputs

    def by_micro_batch(self, step: int, batches: Sequence[Batch]) -> list[Batch | CutBatch]:
        """Return the batches of a step by micro-batch."""
        left = iter(batches)
        return [as_one(self.objective, [next(left) for _ in parts]) for parts in self.parts(step)]

    def by_example(self, steps: Mapping[int, Sequence[TokenScores]]) -> dict[int, ByExample]:
        """Return the scores of this rank's batches of steps by example."""
        given = self.examples(), self.objective, self.config.max_length
        return {step: pending.by_example(scores, self.micro_batches(step), *given) for step, scores in steps.items()}

    def in_batches(self, steps: Mapping[int, ByExample]) -> dict[int, list[TokenScores]]:
        """Return scores by example of steps as those of this rank's batches."""
        given = self.examples(), self.objective, self.config.max_length
        return {step: pending.in_batches(scores, self.micro_batches(step), *given) for step, scores in steps.items()}
