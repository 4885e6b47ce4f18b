"""The lines of the summary that a run prints before its first step: one function a line."""

from collections.abc import Iterable
from dataclasses import fields
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from humanline_fused.impl import choose_impl
from humanline_fused.model.fused_head import causal_lm
from humanline_fused.printing import wrapped
from humanline_fused.reference.adapter import ADAPTER, adapter_tensors
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.findings import Severity
from humanline_fused.training.data.plan import StepPlan
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.objectives.settings import LossSettings
from humanline_fused.training.run.sharding import engine_of
from humanline_fused.training.run_data import RunData


def start_block(trainer: Any, forwards: int, difference: float | None) -> str:
    """Return all lines, wrapped to the terminal.

    Args:
        trainer: a :class:`~humanline_fused.training.HumanlineTrainer` whose models are placed.
        forwards: forward passes of a micro-batch, without the one of humanline sampling.
        difference: as of :func:`describe_model`.
    """
    args, model = trainer.args, trainer.model
    sampled = [sampling.summary() for sampling in (trainer.rounds, trainer.answers) if sampling]
    return wrapped(
        (
            describe_loss(args, trainer.objective, next(model.parameters()).dtype),
            describe_reference(args, model, forwards + (args.perception == "sampling")),
            describe_batches(trainer.plan, trainer.state, engine_of(trainer.accelerator), args.device),
            describe_model(computation(trainer.accelerator), model, difference, *trainer.layout),
            describe_data(trainer.data, *sampled, trainer.checked.warning),
            describe_output(args, trainer.state),
        )
    )


def describe_loss(config: HumanlineConfig, objective: Objective, dtype: torch.dtype) -> str:
    """Return the line of the loss: objective, clamp or sampling, settings, implementation for weights of ``dtype``."""
    choice = choose_impl(config.impl, config.device, dtype)
    return f"{describe_objective(config, objective)}, computed by {choice.impl} ({choice.why})"


def describe_objective(config: HumanlineConfig, objective: Objective) -> str:
    """Return the loss's name, clamp or sampling, and settings, which no machine changes."""
    clamp = f"clamp [{config.log_epsilon_P:g}, {config.log_epsilon_R:g}] nats" if config.clamp else "clamp off"
    perception = describe_sampling(config) or clamp
    said = [perception, *_own(config, objective), *describe_options(config)]
    return f"{objective.name}: {', '.join(said)}"


def _own(config: HumanlineConfig, objective: Objective) -> list[str]:
    """Return the objective's own settings that are names or not their defaults, and beta."""
    own, defaults = objective.own_settings(), {field.name: field.default for field in fields(config)}
    shown = [name for name in own if isinstance(getattr(config, name), str) or getattr(config, name) != defaults[name]]
    return [f"{name}={getattr(config, name)}" for name in shown] + [f"beta={config.beta:g}"]


def describe_options(config: HumanlineConfig) -> list[str]:
    """Return a phrase on every option of the loss that is not its default.

    >>> describe_options(HumanlineConfig("run", loss_temperature=0.7, entropy_coef=0.01, use_cpu=True))
    ['at temperature 0.7', 'entropy bonus 0.01']
    """
    said, temperature = [], config.temperature_of_loss
    if temperature != 1:
        sampled = config.loss_temperature is None
        said.append(f"at temperature {temperature:g}" + (", that of the samples" if sampled else ""))
    if config.entropy_coef:
        said.append(f"entropy bonus {config.entropy_coef:g}")
    if config.one_launch:
        said.append("in one launch where the device allows")
    return said


def describe_sampling(config: LossSettings) -> str | None:
    """Return one phrase on humanline sampling, or None with the clamp.

    >>> describe_sampling(LossSettings(perception="sampling", gamma_P=0.7))
    'humanline sampling, B_P ~ Beta(0.7, 1), B_R ~ Beta(0.01, 1)'
    """
    if config.perception == "clamp":
        return None
    sides = (("P", config.gamma_P, config.beta_P), ("R", config.gamma_R, config.beta_R))
    return ", ".join(["humanline sampling", *(f"B_{side} ~ Beta({g:g}, {b:g})" for side, g, b in sides)])


def describe_reference(config: HumanlineConfig, model: nn.Module, forwards: int) -> str:
    """Return the line of the reference, with its memory cost.

    Args:
        config: the settings.
        model: the policy on this process; its bytes, without a second adapter, are the cost of a second model.
        forwards: forward passes of a micro-batch.
    """
    second = bytes_of(adapter_tensors(model, ADAPTER).values()) if config.reference == "adapter" else 0
    whole = bytes_of(chain(model.parameters(), model.buffers())) - second
    weights = f"{as_bytes(whole)} of weights"
    reference = {
        "lookahead": f"look-ahead k={config.sync_every}, {weights} saved",
        "copy": f"copy k={config.sync_every}, {weights} more",
        "adapter": f"adapter k={config.sync_every}, {as_bytes(second)} more instead of {weights}",
        "frozen": f"frozen, {weights} more",
    }[config.reference]
    flat = "loss and rewards/* stay flat, as it follows the policy"
    sync = "no sync" if config.reference == "frozen" else f"first sync at step 0; {flat}"
    return f"reference: {reference}; forwards per micro-batch {forwards}; {sync}"


def describe_batches(plan: StepPlan, state: TrainerState, engine: str, device: torch.device) -> str:
    """Return the line of the batches: processes, micro-batch, accumulation, steps and epochs."""
    sizes, steps = plan.sizes, state.max_steps
    processes = f"{sizes.world_size} process{'es' * (sizes.world_size > 1)} ({device.type}, {engine})"
    product = f"{processes} x micro-batch {sizes.batch_size} x accumulation {sizes.accumulation}"
    begun = f", from step {state.global_step}" if state.global_step else ""
    epochs = f"{steps / plan.steps_per_epoch:.3g} epochs of {plan.steps_per_epoch}"
    return f"batches: {product} = global batch {sizes.global_batch}; {steps} steps{begun}, {epochs}"


def computation(accelerator: Any) -> str:
    """Return the data type of mixed precision, or nothing without it.

    The launcher may choose it, whatever the settings say (``accelerate launch --mixed_precision``).
    """
    name = str(accelerator.mixed_precision)
    return "" if name == "no" else {"bf16": "bfloat16", "fp16": "float16"}.get(name, name)


def describe_model(computes: str, model: nn.Module, difference: float | None, layout: str, why: str) -> str:
    """Return the line of the placed model: class, data types, attention, head and layout.

    Args:
        computes: as of :func:`computation`.
        model: the policy on this process.
        difference: the largest difference found by the probe, in nats; None if the model computes its own logits.
        layout, why: the layout of the batches, and the reason for it.
    """
    inside = causal_lm(model)
    weights = sorted({_name(p.dtype) for p in model.parameters()})
    types = f"{', '.join(weights)} weights" + (f" in {computes} computation" if computes else "")
    attention = f"attention {getattr(inside.config, '_attn_implementation', None)}"
    head = "head: the model's own logits" if difference is None else f"head check: max |Δlogp| {difference:.0e}"
    return f"model: {'; '.join([type(model).__name__, types, attention, head, describe_layout(layout, why)])}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe_layout(layout: str, why: str) -> str:
    """Return a phrase on the layout of the batches.

    >>> describe_layout("shared_prompt", "exact for this model")
    'layout: each shared prompt once (shared_prompt: exact for this model)'
    """
    meaning = {
        "shared_prompt": "each shared prompt once",
        "sorted": "padded rows, sorted by length",
        "padded": "padded rows",
    }[layout]
    return f"layout: {meaning} ({layout}: {why})"


def describe_data(data: RunData, *more: str | None) -> str:
    """Return the line of the data: their number, and what a user should know of them.

    Args:
        data: the data.
        more: further phrases: on rounds, on answers to held-out prompts, and on positions.
    """
    train, held_out, fraction = data.train, data.held_out, data.fraction
    said = [f"data: {train.summary()}"]
    if held_out:
        whole = f", whole prompts (eval_fraction={fraction:g}; 0 trains on all)" if fraction else ""
        said.append(f"held out: {held_out.summary()}{whole}")
    said += [phrase for phrase in more if phrase]
    said += train.findings.lines(Severity.LOSS, Severity.NOTE)
    said += [f"held out: {line}" for line in held_out.findings.lines(Severity.LOSS, Severity.NOTE)] if held_out else []
    return "; ".join(said)


def describe_output(config: HumanlineConfig, state: TrainerState) -> str:
    """Return the line of what is written where; of a dry run, that nothing was trained."""
    if config.dry_run:
        return f"dry run: nothing was trained, and nothing is written to {config.output_dir}"
    checkpoints = {
        SaveStrategy.NO: "no checkpoints",
        SaveStrategy.STEPS: f"a checkpoint every {_steps(state.save_steps)}",
        SaveStrategy.EPOCH: "a checkpoint every epoch",
        SaveStrategy.BEST: "a checkpoint at the best evaluation so far",
    }[SaveStrategy(config.save_strategy)]
    evaluations = {
        IntervalStrategy.NO: "no evaluation in training",
        IntervalStrategy.STEPS: f"an evaluation every {_steps(state.eval_steps)}",
        IntervalStrategy.EPOCH: "an evaluation every epoch",
    }[IntervalStrategy(config.eval_strategy)]
    log = {
        IntervalStrategy.NO: "no log lines",
        IntervalStrategy.STEPS: f"a log line every {_steps(state.logging_steps)}",
        IntervalStrategy.EPOCH: "a log line every epoch",
    }[IntervalStrategy(config.logging_strategy)]
    reports: Any = config.report_to
    others = f"; reports to {', '.join(reports)}" if reports else ""
    return f"writes to {config.output_dir}: {log}, {checkpoints}, {evaluations}{others}"


def _steps(number: float) -> str:
    """Return a number of steps as text.

    >>> _steps(1), _steps(500)
    ('step', '500 steps')
    """
    return "step" if number == 1 else f"{number:g} steps"


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors on this process, counting each tensor once."""
    distinct = {id(tensor): tensor for tensor in tensors}
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in distinct.values())
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def as_bytes(number: float) -> str:
    """Format a number of bytes with a binary unit.

    >>> as_bytes(3 * 1024**3), as_bytes(1536)
    ('3.0 GiB', '1.5 KiB')
    """
    units = ("B", "KiB", "MiB", "GiB")
    power = min(len(units) - 1, max(0, int(number).bit_length() - 1) // 10)
    return f"{number / 1024**power:.1f} {units[power]}" if power else f"{number} B"
