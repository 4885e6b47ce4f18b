"""transformers' Trainer with a synced reference.

The loop, the optimizer, mixed precision, distribution, callbacks and logging are transformers'. Humanline replaces four
parts: batches come from a plan that can be read ahead, the loss has a reference, checkpoints are atomic and include the
reference, and evaluation compares with the initial policy.
"""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from humanline_fused.reference import CopyReference, LookaheadReference
from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.training import pending
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.batch import Batch, CutBatch
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.forms import keeps_groups
from humanline_fused.training.data.plan import BatchPlan, BatchSizes
from humanline_fused.training.data.prepare import PreparedData
from humanline_fused.training.data.prompts import PreparedPrompts
from humanline_fused.training.evaluation import EvaluatedTrainer, HeldOut
from humanline_fused.training.foreign_arguments import OF_TRAINER, refuse_foreign
from humanline_fused.training.layouts import Choice, check_layout, choose_layout
from humanline_fused.training.objectives.metrics import Weighted, distance
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.online.generation import end_tokens
from humanline_fused.training.online.held_out_reward import make_held_out_reward
from humanline_fused.training.online.reward import RolloutError, the_reward
from humanline_fused.training.online.rollout import make_rounds
from humanline_fused.training.references import Reference, make_reference
from humanline_fused.training.run.checkpoint import step_of
from humanline_fused.training.run.clock import Clock
from humanline_fused.training.run.data_metrics import DataMetrics, steps_with_drift
from humanline_fused.training.run.earlier_run import METRICS
from humanline_fused.training.run.failure_signs import FailureSigns
from humanline_fused.training.run.identity import check_identity, code_of, run_identity
from humanline_fused.training.run.log_lines import print_log_lines, write_lines
from humanline_fused.training.run.loop_state import LoopState
from humanline_fused.training.run.metrics_log import Meter, MetricsFile
from humanline_fused.training.run.reference_sync import ReferenceSync
from humanline_fused.training.run.settings_file import SETTINGS, write_settings
from humanline_fused.training.run.sharding import engine_of, refuse_engine
from humanline_fused.training.run.summary import start_block
from humanline_fused.training.run.termination import Termination
from humanline_fused.training.run.writing import writing
from humanline_fused.training.run_data import check_sources, read_run_data
from humanline_fused.training.scoring import Scorer
from humanline_fused.training.start import (
    KeptPadToken,
    check_arguments,
    check_data,
    check_forward,
    load_policy,
    make_ready_,
    pad_token_id_of,
)
from humanline_fused.training.step_sampling import with_sampling
from humanline_fused.training.windows import Windows


class HumanlineTrainer(EvaluatedTrainer):
    """Trains a causal language model with humanline DPO, KTO, GRPO or a user-defined loss.

    Args:
        model: the initial policy, or its name or folder; default ``args.model``.
        args: the settings; default ``HumanlineConfig()``.
        train_dataset: a path, a name, a ``datasets.Dataset`` or a list of mappings; default ``args.dataset``. With
            ``args.rollout_every`` only its prompts are used; the policy samples the completions.
        eval_dataset: default ``args.eval_dataset``. The initial policy scores it before the first step; the evaluation
            loss and ``rewards_initial/*`` compare with these scores.
        processing_class: the tokenizer; default the one in the model's folder.
        reference_model: for ``reference="copy"`` and ``"frozen"``; default a copy of the policy.
        reward_function: scores the policy's samples, those of online rounds and its answers to the prompts of
            ``eval_dataset``; default the one named by ``args.reward``.
        callbacks, optimizers: as in transformers' Trainer.
        objective: your own loss (docs/losses.md); default the one named by ``args.objective``.
        peft_config: a configuration of peft, for a new adapter on the model; default ``args.lora_r`` and its like.

    Raises:
        ValueError, TypeError: bad input, before anything but the data's tokens is written; the message gives the
            expected and the actual value.

    Source: arXiv 2509.24207, section 4.

    >>> config = HumanlineConfig(output_dir="run", model="start", dataset="pairs.jsonl")  # doctest: +SKIP
    >>> trainer = HumanlineTrainer(args=config)  # doctest: +SKIP
    >>> trainer.train(); trainer.save_model()  # doctest: +SKIP
    """

    args: HumanlineConfig

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike[str] | None = None,
        args: HumanlineConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reference_model: nn.Module | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        reward_function: Callable[..., Any] | None = None,
        objective: Objective | None = None,
        peft_config: Any = None,
        **foreign: Any,
    ) -> None:
        refuse_foreign("HumanlineTrainer", foreign, OF_TRAINER, inspect.signature(HumanlineTrainer).parameters)
        args = check_arguments(args, objective, reference_model)
        self.objective = args.make_objective()
        check_layout(args.layout, self.objective)
        rounds = args.rollout_every is not None
        held_out = (args.eval_dataset if eval_dataset is None else eval_dataset) is not None
        reward = the_reward(args.reward, reward_function, rounds=rounds, held_out=held_out and args.eval_answers)
        args.check_sampling(rewarded=reward is not None)
        how: dict[str, Any] = {"prompts_alone": rounds, "answered": bool(reward and args.eval_answers)}
        check_sources(train_dataset, eval_dataset, args, self.objective, **how)
        policy, tokenizer = load_policy(model, processing_class, args, peft_config)
        make_ready_(policy, args, optimizers[0])
        self.pad_token_id = pad_token_id_of(tokenizer, policy)
        how["stops"] = end_tokens(policy.generation_config, tokenizer)
        self.data = data = read_run_data(train_dataset, eval_dataset, tokenizer, args, self.objective, **how)
        self.train_data, self.eval_examples = data.train, data.held_out_examples
        self.checked = check_data(policy, reference_model, data, tokenizer, args, self.objective)
        self._plan_steps(reward if rounds else None, tokenizer, args)
        self.answers = make_held_out_reward(args, data.held_out_prompts, reward, tokenizer, self.pad_token_id)
        super().__init__(
            model=policy,
            args=args,
            train_dataset=self.train_data.examples,  # pyright: ignore[reportArgumentType]
            eval_dataset=self.eval_examples or None,  # pyright: ignore[reportArgumentType]
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a micro-batch's mean; Trainer divides by the accumulation
        self.begun, self.given_optimizer = False, optimizers[0]
        self.meters = {"train": Meter(), "eval": Meter()}
        self.clock = Clock(args.device)
        self.scorer = Scorer(args, self.objective)
        self.windows = Windows(args, self.objective, self.plan, lambda: self.train_examples, self.pad_token_id)
        self.layout: Choice | None = None
        self.held_out = HeldOut(self.eval_examples, self.windows, args, self.objective)
        self._watch()
        engine = engine_of(self.accelerator)
        self._identity = run_identity(args, self.objective, self.plan, data, self.rounds, policy, engine)
        self.reference = self._make_reference(reference_model)
        given = {"reference_model": reference_model is not None, "rounds": self.rounds is not None}
        self.data_metrics = DataMetrics(steps_with_drift(args, **given), args.sync_every)

    def _plan_steps(
        self, reward: Callable[..., Any] | None, tokenizer: PreTrainedTokenizerBase, args: HumanlineConfig
    ) -> None:
        """Make the plan of the examples of each optimizer step, from the dataset or from rounds."""
        sizes = BatchSizes(args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size)
        seed = args.seed if args.data_seed is None else args.data_seed
        self.rounds = None
        if reward is None:
            units = self.train_data.examples.units if keeps_groups(self.objective) else None
            self.plan = BatchPlan(len(self.train_data.examples), sizes, seed, units)
        else:
            assert isinstance(self.train_data, PreparedPrompts)
            made_of = self.train_data, reward, tokenizer, self.pad_token_id, sizes, seed
            self.rounds = make_rounds(args, self.objective, *made_of)
            self.plan = self.rounds.plan
        if self.objective.mismatched and sizes.micro_batch < 2:
            raise ValueError(
                f"{self.objective.name}: expected at least 2 completions in a global micro-batch (mismatched pairs), "
                f"got {sizes.micro_batch}"
            )

    def _watch(self) -> None:
        """Add the callbacks for signals, the metrics file, the loop, the signs of failure and the model's pad token."""
        self.termination = Termination()
        self.add_callback(self.termination)
        self.loop = LoopState(self, self.meters["train"])
        self.metrics_file = MetricsFile(self.run_dir / METRICS, self.termination.fail)
        if not self.args.dry_run:
            self.add_callback(self.metrics_file)
            self.add_callback(self.loop)
        print_log_lines(self)
        self.add_callback(FailureSigns(self.args))
        self.add_callback(KeptPadToken(self._policy))

    @property
    def train_examples(self) -> Sequence[Example]:
        """The examples that the plan's ids index: those of the dataset, or of the current round."""
        if self.rounds:
            return self.rounds.examples
        assert isinstance(self.train_data, PreparedData)
        return self.train_data.examples

    def _make_reference(self, model: nn.Module | None) -> Reference:
        given = {"sampled": bool(self.rounds or self.answers), "cut": self.args.max_tokens_per_micro_batch is not None}
        refuse_engine(self.accelerator, self.args.reference, **given)

        def score(model: nn.Module, step: int) -> list[TokenScores]:
            return self.scorer.score(model, self._window(step), with_entropy=True)

        reference = make_reference(self.args, self.accelerator, lambda: self._policy, model, score)
        if not isinstance(reference, LookaheadReference):
            self.add_callback(ReferenceSync(reference))
        return reference

    @property
    def _policy(self) -> nn.Module:
        assert self.model_wrapped is not None
        return self.model_wrapped

    # Batches

    def _window(self, step: int) -> list[Batch]:
        """Return this rank's batches of a step."""
        return self.windows.window(step, self.state.global_step)

    def choose_layout(self) -> None:
        """Choose the layout of the batches on the placed models, once, before anything is scored. Collective."""
        if self.layout is not None:
            return
        assert self.model is not None
        models: list[tuple[nn.Module, nn.Module]] = [(self._policy, self.model)]
        if isinstance(self.reference, CopyReference):  # it may be another architecture
            models.append((self.reference.model, self.accelerator.unwrap_model(self.reference.model)))
        examples = self.train_examples or self.eval_examples
        self.layout = choose_layout(self.args.layout, self.objective, models, examples, self.checked.longest)
        sharded = any(isinstance(module, FSDPModule) for module in self._policy.modules())
        self.plan = self.windows.use(self.layout.layout, alike=sharded)

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader that gives Trainer the length; :meth:`get_batch_samples` takes batches from the plan."""
        plan: Any = self.plan
        # With a generator of its own it leaves torch's alone, whose state a checkpoint holds.
        settings: dict[str, Any] = {"collate_fn": list, "generator": torch.Generator()}
        return DataLoader(self.train_data.examples, batch_sampler=plan, **settings)  # pyright: ignore[reportArgumentType]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Batch | CutBatch], None]:
        """Return the micro-batches of the next optimizer step, with the reference's log-probs."""
        step = self.state.global_step
        # Trainer would take one more step when a finished run is resumed, or one that its last evaluation stopped.
        if step >= self.state.max_steps or self.control.should_training_stop or self.stops_early():
            self.control.should_training_stop = True
            return [], None
        self.make_ready(step)
        self.answer_first(step)
        if self.args.dry_run:
            self.control.should_training_stop = True
            return [], None
        with self.clock.spent_on("evaluation"):
            self._score_initially(self._policy)
        inputs = self.windows.inputs(step, self.reference.scores(step, self.state.max_steps - 1))
        if self.args.perception == "sampling":
            sampled = self.windows.micro_batches(step), self.train_examples, step
            inputs = with_sampling(self.scorer, self._policy, inputs, *sampled)
        inputs = self.windows.by_micro_batch(step, inputs)
        if self.args.include_num_input_tokens_seen == "no":
            examples = self.windows.everything(step)
            self.state.num_input_tokens_seen += sum(len(e.prompt_ids) + len(c) for e in examples for c in e.completions)
        return inputs, None

    def make_ready(self, step: int) -> None:
        """Draw the samples of ``step``'s round, or save a checkpoint; at first check and print what runs."""
        if self.rounds:
            policy: Any = self.accelerator.unwrap_model(self._policy)
            try:
                if self.rounds.begin(step, policy, self.clock):
                    self.windows.clear()
            except RolloutError as error:
                raise RolloutError(f"{error}{'' if self.args.dry_run else self.keep_run()}") from error
        if not self.begun:
            self._begin(step)

    def _begin(self, step: int) -> None:
        """Choose the layout, check model, head and loss on the wrapped and placed model, and print what runs."""
        self.choose_layout()
        assert self.model is not None
        batch = self._window(step)[0]
        difference = check_forward(self._policy, self.model, batch.input_ids, self.args)
        self.scorer.try_objective(self._policy, batch)
        if self.args.process_index == 0:
            write_lines([start_block(self, batch.forwards, difference)])
        self.begun = True

    def _prepare_inputs(self, inputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the inputs unchanged: they are on the device, and Trainer would round log-probs under DeepSpeed."""
        return inputs

    def training_step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: nn.Module, inputs: Batch | CutBatch, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Compute the loss of a micro-batch and add its gradient, part by part; only the last reduces the gradients."""
        if isinstance(inputs, Batch):
            return super().training_step(model, inputs, num_items_in_batch)  # pyright: ignore[reportArgumentType]
        model.train()
        parts = self.scorer.with_z0(model, inputs.parts)
        state, losses = self.accelerator.gradient_state, []
        reduces = state.sync_gradients
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            state._set_sync_gradients(reduces and last)
            # Of a micro-batch before the step's last one, Trainer has turned off the reduction.
            with self.accelerator.no_sync(model) if reduces and not last else nullcontext():
                losses.append(super().training_step(model, part, num_items_in_batch))  # pyright: ignore[reportArgumentType]
        return torch.stack(losses).sum()

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss over pairs (DPO), sequences (KTO) or tokens of the step (GRPO); record its metrics.

        Of the part of a micro-batch, the mean's share.
        """
        meter = self.meters["train" if model.training else "eval"]
        loss, out = self.scorer.loss(model, inputs)
        metrics = dict(out.metrics)
        if model.training:
            metrics |= self.data_metrics.update(self.state.global_step, out, inputs.ref_entropy, inputs.loss_mask)
        else:
            metrics["kl_initial"] = distance(out.logp, out.ref_logp, inputs.loss_mask)
        if inputs.repeated:  # zeros under the same names, so that all ranks reduce the same metrics
            metrics = {name: Weighted(*map(torch.zeros_like, weighted)) for name, weighted in metrics.items()}
        meter.update(metrics)
        return (loss, out) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write Trainer's log line with the objective's metrics; none in a dry run, which trains nothing."""
        if self.args.dry_run:
            return
        if "loss" in logs:
            sampled = self.rounds.drain() if self.rounds else {}
            done = {"num_tokens": self.state.num_input_tokens_seen, **self.clock.seconds()}
            logs = {**self._drain("train"), **self.data_metrics.drain(self._summed), **sampled, **done, **logs}
        if "train_loss" in logs:
            if self.termination.stopped:  # it is the last line of a finished run
                return
            logs["train_loss"] = self.loop.mean_loss()
        super().log(logs, start_time)

    # Checkpoints

    def before_training(self, resume: str | None) -> None:
        """Check the evaluation, and load the initial scores of a resumed run."""
        self.check_evaluation()
        self.held_out.initial.scores = None
        self.answered = False
        self.data_metrics.restart()
        self.clock.start()
        if self.rounds:
            self.rounds.restart(step_of(Path(resume)) if resume else 0, code_of(self._identity))
        if resume and self.eval_examples:
            self.held_out.resume(Path(resume).parent, keep=self.args.should_save and not self.args.dry_run)
        self.loop.resume(resume)
        with writing(self.run_dir / SETTINGS, self.run_dir):
            write_settings(self.args)

    def identity(self) -> dict[str, Any]:
        return self._identity

    def check_identity(self, saved: dict[str, Any], folder: str) -> None:
        check_identity(saved, self._identity, folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.clock.spent_on("saving"):
            super()._save_checkpoint(model, trial)

    def run_state(self) -> Any:
        state: dict[str, Any] = self.reference.state_dict() | {"clock": self.clock.state_dict()}
        state["data_metrics"] = self.data_metrics.state_dict(self._summed)
        state["loop"] = self.loop.state_dict(self._summed)
        if self.rounds:
            state["rounds"] = self.rounds.state_dict()
        if self.args.reference == "lookahead":
            mine = self.windows.by_example(state["pending"])
            state["pending"] = pending.merged(gather_object([mine]))
        return state

    def restore(self, state: Any) -> None:
        self.clock.load_state_dict(state["clock"])
        self.data_metrics.load_state_dict(state.get("data_metrics", {}), self.args.device, self.args.world_size)
        self.loop.load_state_dict(state.get("loop"))
        if self.rounds:
            self.rounds.load_state_dict(state["rounds"])
            self.windows.clear()
        if self.args.reference == "lookahead":
            self.choose_layout()  # it decides how a step is cut
            state["pending"] = self.windows.in_batches(state["pending"])
        self.reference.load_state_dict(state, self.state.global_step, self.state.max_steps - 1)
