"""Evaluation of the current policy against the initial policy on held-out data, without a second model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.training import pending
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.batch import Batch, CutBatch
from humanline_fused.training.data.examples import Example, fingerprint
from humanline_fused.training.data.plan import MicroBatch, evaluation_plan
from humanline_fused.training.initial_scores import InitialScores
from humanline_fused.training.objectives.metrics import with_margins
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.objectives.table import is_in_table
from humanline_fused.training.online.held_out_reward import METRICS, HeldOutReward
from humanline_fused.training.online.reward import RolloutError
from humanline_fused.training.pending import ByExample
from humanline_fused.training.run.clock import Clock
from humanline_fused.training.run.metrics_log import Meter
from humanline_fused.training.run.model_card import CARD, card_text, without_other_cards, write_card
from humanline_fused.training.run.resumable import ResumableTrainer
from humanline_fused.training.run.untrue_warnings import without_untrue_warnings
from humanline_fused.training.run.writing import unwritten, writing
from humanline_fused.training.scoring import Scorer
from humanline_fused.training.windows import Windows, as_one
from humanline_fused.validation.values import nearest

SPEED = {"runtime", "samples_per_second", "steps_per_second"}
"""Metrics that Trainer adds to an evaluation."""


def _renamed(metric: str) -> str:
    return metric.replace("rewards/", "rewards_initial/")


class HeldOut:
    """This rank's share of the held-out data, scored by the policy before its first step.

    Args:
        examples: all held-out examples; empty if the run has none.
        windows: cuts micro-batches and makes their batches.
        config, objective: the settings of the run.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        windows: Windows,
        config: HumanlineConfig,
        objective: Objective,
    ) -> None:
        self.examples = examples
        self.windows = windows
        self.batch_size, self.rank = config.per_device_eval_batch_size, config.process_index
        ranks = range(config.world_size)
        self.plans = [evaluation_plan(len(examples), self.batch_size, rank, config.world_size) for rank in ranks]
        self.dealt = self.plans[self.rank]
        self.settings = examples, objective, config.max_length
        made_of = {"objective": objective.name, "max_length": config.max_length, "batch_size": self.batch_size}
        made_of |= {"data": fingerprint(examples), "temperature": config.temperature_of_loss}
        self.initial = InitialScores(Path(str(config.output_dir)), made_of, self._of_batches)

    def _of_batches(self, scored: list[TokenScores]) -> ByExample:
        everything = evaluation_plan(len(self.examples), self.batch_size, rank=0, world_size=1)
        return pending.of_padded(scored, [micro for micro, _ in everything], *self.settings)

    def score(
        self,
        model: nn.Module,
        score: Callable[[nn.Module, list[Batch]], list[TokenScores]],
        *,
        fresh: bool,
        keep: bool,
    ) -> None:
        """Load the initial scores from the run's folder, or compute them with ``model``, unless they are in memory.

        Collective.

        Args:
            model, score: the model, and the function that scores batches with it.
            fresh: the run is about to take its first step, so scores in its folder belong to an earlier run.
            keep: write computed scores to the run's folder.
        """
        if self.initial.scores is not None or not self.examples:
            return
        if not fresh and self.initial.file.is_file():
            self.initial.load()
            return
        taken: ByExample = {}
        for number in range(len(self.dealt)):
            for part, counts in self._parts(number):
                scored = score(model, [self.windows.collate(self.examples, part)])
                taken |= pending.by_example(scored, [part], *self.settings) if counts else {}
        self.initial.make(taken)
        with writing(self.initial.file, self.initial.file.parent):
            if keep:
                self.initial.save()

    def resume(self, earlier: Path, *, keep: bool) -> None:
        """Load the initial scores of a run in the folder ``earlier``; write them into this run's, if it is another.

        Collective.
        """
        self.initial.load(earlier)
        with writing(self.initial.file, self.initial.file.parent):
            if keep and earlier.resolve() != self.initial.file.parent.resolve():
                self.initial.save()

    def _parts(self, number: int) -> list[tuple[MicroBatch, bool]]:
        """Return the parts of one of this rank's micro-batches, each with True unless it repeats the part before."""
        micros = [plan[number][0] for plan in self.plans]
        if self.windows.alike:
            parts = self.windows.budget.cut_alike(self.examples, micros, self.rank)
        else:
            parts = self.windows.budget.cut(self.examples, micros[self.rank])
        return [(part, part is not before) for part, before in zip(parts, [None, *parts], strict=False)]

    def with_initial_scores(self, batch: Batch | CutBatch) -> Batch | CutBatch:
        """Return one of this rank's batches with the scores of the initial policy."""
        assert self.initial.scores is not None
        batches = batch.parts if isinstance(batch, CutBatch) else (batch,)
        assert batches[0].index is not None
        parts = [part for part, _ in self._parts(batches[0].index)]
        scores = pending.in_batches(self.initial.scores, parts, *self.settings)
        scored = tuple(batch.with_scores(given) for batch, given in zip(batches, scores, strict=True))
        return CutBatch(scored) if isinstance(batch, CutBatch) else scored[0]

    def batches(self) -> Iterator[Batch]:
        """Yield the micro-batches of all ranks."""
        for micro, _ in evaluation_plan(len(self.examples), self.batch_size, rank=0, world_size=1):
            yield self.windows.collate(self.examples, micro)

    def dataloader(self) -> DataLoader:
        """Return this rank's micro-batches in order, with ``index``; ``repeated`` marks those that do not count."""

        def batch(index: Any) -> Batch | CutBatch:
            repeated = not self.dealt[index][1]
            parts = [
                replace(
                    self.windows.collate(self.examples, part),
                    index=index,
                    repeated=repeated or not counts,
                    share=float(counts),
                )
                for part, counts in self._parts(index)
            ]
            return as_one(self.windows.objective, parts)

        positions: Any = range(len(self.dealt))
        return DataLoader(positions, batch_size=None, collate_fn=batch, generator=torch.Generator())


class EvaluatedTrainer(ResumableTrainer):
    """A trainer whose evaluation compares with the initial policy.

    A subclass sets :attr:`scorer`, :attr:`held_out`, :attr:`answers`, :attr:`meters` and :attr:`clock`, and computes
    the loss.
    """

    args: HumanlineConfig
    objective: Objective
    scorer: Scorer
    held_out: HeldOut
    answers: HeldOutReward | None
    answered = False
    meters: dict[str, Meter]
    clock: Clock

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as :class:`ResumableTrainer` does; an export also gets a model card, a user's README.md stays."""
        if self._staging:
            super().save_model(output_dir, _internal_call)
            return
        assert self.model is not None
        with without_other_cards(self.accelerator.unwrap_model(self.model)):
            super().save_model(output_dir, _internal_call)
        self._write_card(Path(str(output_dir or self.args.output_dir)))

    def create_model_card(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model_name: str | None = None, tags: str | list[str] | None = None, **front: Any
    ) -> None:
        """Write the card of :meth:`save_model` with further front matter, in place of Trainer's."""
        tags = [tags] if isinstance(tags, str) else tags or []
        self._write_card(self.run_dir, title=model_name, front={**front, "tags": tags})

    def _write_card(self, folder: Path, **more: Any) -> None:
        if not self.args.should_save:
            return
        try:
            kept = write_card(folder, card_text(self, **more))
        except OSError as error:
            raise unwritten(error, folder / CARD, self.run_dir) from error
        if kept:
            print(kept, flush=True)

    def _score_initially(self, model: nn.Module) -> None:
        self.held_out.score(
            model, self.scorer.score, fresh=self.is_in_train, keep=self.is_in_train and self.args.should_save
        )

    def make_ready(self, step: int) -> None:
        """Check and print what runs, before anything of ``step``."""

    def _evaluate(self, *args: Any, skip_scheduler: bool = False, **kwargs: Any) -> dict[str, float]:
        if skip_scheduler and not self.state.global_step:  # eval_on_start, before the first batch
            self.make_ready(0)
        return super()._evaluate(*args, skip_scheduler=skip_scheduler, **kwargs)

    def choose_layout(self) -> None:
        """Choose the layout of the batches, before anything is scored."""

    def check_evaluation(self) -> None:
        """Check before the first step what transformers finds at the first evaluation, or not at all in a dry run.

        A callback or a subclass that evaluates may add metrics of its own, so any name is accepted from them.

        Raises:
            ValueError: no evaluation gives ``metric_for_best_model``.
        """
        if not self.held_out.examples:
            return
        asked = self.args.metric_for_best_model
        if asked is None or self._others_evaluate():
            return
        given: set[str] = set()
        name, found = asked.removeprefix("eval_"), {"loss", "kl_initial"} | set(METRICS if self.answers else ())
        for batch in self.held_out.batches():
            found |= self.scorer.metric_names(batch)
            given = {_renamed(metric) for metric in with_margins(dict.fromkeys(found, 0.0))}
            if name in given | SPEED:
                return
        listed = sorted(f"eval_{metric}" for metric in given)
        close = nearest(f"eval_{name}", listed)
        raise ValueError(
            f"metric_for_best_model: expected a metric of the evaluation ({', '.join(listed)}), got {asked!r}{close}"
        )

    def _others_evaluate(self) -> bool:
        methods = (type(callback).on_evaluate for callback in self.callback_handler.callbacks)
        own = any(not method.__module__.startswith("transformers.") for method in methods)
        return own or type(self).evaluate is not Trainer.evaluate

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return this rank's share of the held-out data, in order."""
        if not self.held_out.examples:
            raise ValueError("evaluate: expected an eval_dataset (held-out data in the training's columns), got none")
        if eval_dataset is not None and eval_dataset is not self.held_out.examples:
            raise ValueError(
                "evaluate: expected the eval_dataset of the start, which the initial policy has scored, got another"
            )
        self.choose_layout()
        return self.held_out.dataloader()

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Raise NotImplementedError: the initial policy has not scored other data."""
        raise NotImplementedError(
            "predict: expected evaluate(), on the eval_dataset that the policy at the start has scored; "
            "the model's answers come from model.generate()"
        )

    def prediction_step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: nn.Module,
        inputs: Batch | CutBatch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """Return the loss of one micro-batch against the initial policy."""
        self._score_initially(model)
        inputs = self.held_out.with_initial_scores(inputs)
        with torch.no_grad():
            model.eval()  # DeepSpeed's engine returns None
            parts = [inputs] if isinstance(inputs, Batch) else self.scorer.with_z0(model, inputs.parts)
            losses: list[Any] = [self.compute_loss(model, part) for part in parts]  # pyright: ignore[reportArgumentType]
            return torch.stack(losses).sum(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Run Trainer's loop and add means against the initial policy: loss, ``rewards_initial/*``, ``kl_initial``."""
        with self.clock.spent_on("evaluation"), without_untrue_warnings():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            means = self._drain("eval") | self._answer()
        renamed = {f"{metric_key_prefix}_{_renamed(name)}": value for name, value in means.items()}
        return output._replace(metrics=(output.metrics or {}) | renamed, num_samples=len(self.held_out.examples))

    def _answer(self) -> dict[str, float]:
        """Return the metrics of the policy's answers to the held-out prompts. Collective."""
        if not self.answers:
            return {}
        self.answered = True
        policy: Any = self.accelerator.unwrap_model(self.model)
        try:
            return self.answers.measure(policy)
        except RolloutError as error:
            kept = self.keep_run() if self.is_in_train and not self.args.dry_run else ""
            raise RolloutError(f"{error}{kept}") from error

    def answer_first(self, step: int) -> None:
        """Log the reward of the initial policy's answers, unless an evaluation at the start did. Collective."""
        if step or self.answered or not self.answers:
            return
        with self.clock.spent_on("evaluation"):
            metrics = self._answer()
        self.log({f"eval_{name}": value for name, value in metrics.items()})

    def _drain(self, meter: str) -> dict[str, float]:
        """Means over all ranks since the last call.

        Raises:
            ValueError: the metrics of a user-defined loss have other names on another rank.
        """
        if self.args.world_size > 1 and not is_in_table(self.objective):
            names = gather_object([list(self.meters[meter].sums)])
            if any(other != names[0] for other in names):
                raise ValueError(f"{self.objective.name}: expected metrics of the same names on all ranks, got {names}")
        return with_margins(self.meters[meter].drain(self._summed))

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks. Collective."""
        return self.accelerator.reduce(values, "sum")  # pyright: ignore[reportReturnType]
