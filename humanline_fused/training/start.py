"""Loads and checks the policy and its tokenizer."""

import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from humanline_fused.model.fused_head import causal_lm, score_in_forward_
from humanline_fused.model.noise import refuse_dropout, refuse_noise
from humanline_fused.model.probe import probe
from humanline_fused.places import refuse_absent, what_is_here
from humanline_fused.printing import one_line
from humanline_fused.reference.adapter import trained_adapter
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.store import StoredExamples
from humanline_fused.training.lora import MERGE, has_loaded_adapter, with_adapter
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.objectives.table import check_parts
from humanline_fused.training.positions import Longest, check_positions, longest_sequence, position_limit_of
from humanline_fused.training.run_data import RunData


def check_arguments(args: Any, objective: Objective | None, reference_model: nn.Module | None) -> HumanlineConfig:
    """Return the settings, default ones for None, checked against this machine and the other arguments."""
    args = HumanlineConfig() if args is None else args
    if not isinstance(args, HumanlineConfig):
        raise TypeError(f"args: expected a HumanlineConfig, got {type(args).__name__}")
    if args.n_gpu > 1:
        raise ValueError(
            f"expected one process per GPU, got one process that sees {args.n_gpu} GPUs. Start with\n"
            f"  accelerate launch --num_processes {args.n_gpu} -m humanline_fused train ...\n"
            "or show it one with CUDA_VISIBLE_DEVICES=0"
        )
    if reference_model is not None and args.reference in ("lookahead", "adapter"):
        raise ValueError(
            f"reference_model: expected None with reference={args.reference!r}, which keeps no second model"
        )
    if objective is not None:
        check_parts(objective)
        return args.with_objective(objective)
    return args


def load_policy(
    model: PreTrainedModel | str | os.PathLike[str] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    config: HumanlineConfig,
    peft_config: Any = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the policy and its tokenizer, loaded if given by name, with dropout off if the config says so.

    Args:
        model, tokenizer: given objects or names; default those of ``config.model``.
        config: the settings.
        peft_config: of an adapter, in place of ``config.lora_r``.

    Raises:
        ValueError: there is no model or tokenizer, or a setting that they cannot follow.
    """
    model, tokenizer = load_base(model, tokenizer, config)
    model = with_adapter(model, config, peft_config, seed=config.seed)
    if config.disable_dropout:
        disable_dropout_(model)
    return model, tokenizer


def load_base(
    model: PreTrainedModel | str | os.PathLike[str] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    config: HumanlineConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and its tokenizer as they are, loaded if given by name."""
    model = config.model if model is None else model
    if model is None:
        raise ValueError("model: expected a folder written by save_pretrained, a name or a model, got None")
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    name = model if isinstance(model, str) else model.config._name_or_path
    if tokenizer is None:
        if not name:
            raise ValueError(
                "processing_class: expected a tokenizer, because the model was not loaded by name, got None"
            )
        with loading("tokenizer", name):
            tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(name, **config.source()))
    if isinstance(model, str):
        with loading("model", model):
            model = cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(model, **config.loading()))
    else:
        config.refuse_loaded()
    return model, tokenizer


def check_forward(wrapped: nn.Module, model: nn.Module, input_ids: Tensor, config: HumanlineConfig) -> float | None:
    """Check the forward passes of the placed policy on some tokens of a batch. Collective. Leaves eval mode on.

    Returns:
        The largest difference between the log-probs of a fused head and those of the model's own logits, in nats;
        None with the latter.

    Raises:
        ValueError: they differ by more than rounding explains, or the training forward of a humanline run has noise.
    """
    if config.is_humanline:
        refuse_noise(wrapped, model, input_ids)
    if config.head != "fused":
        return None
    return probe(wrapped, model, input_ids, torch.ones_like(input_ids), config.impl)


def make_ready_(policy: PreTrainedModel, config: HumanlineConfig, optimizer: Any = None) -> None:
    """Check the policy's dropout, weights and adapter, and change its head for scores inside forward if asked to.

    Args:
        policy: the policy, with its adapter.
        config: the settings.
        optimizer: the one that the user made, if any.

    Raises:
        ValueError: a humanline run has dropout, nothing is trained, ``reference="adapter"`` has no adapter, or the head
            is not linear.
    """
    _check_trained(policy, optimizer)
    if config.is_humanline:
        refuse_dropout(policy)
    if config.reference == "adapter":
        trained_adapter(policy)
    if config.head == "fused":
        score_in_forward_(policy)


def _check_trained(policy: nn.Module, optimizer: Any) -> None:
    """Raise ValueError if a step would change no weight, or the adapter has tokens that the losses do not know."""
    given = getattr(policy, "active_peft_config", None)
    if getattr(given, "is_prompt_learning", False):
        raise ValueError(
            f"peft_config: expected an adapter of weights, got {type(given).__name__}, whose virtual tokens precede "
            "every sequence"
        )
    trained = {id(parameter) for parameter in policy.parameters() if parameter.requires_grad}
    if not trained:
        loaded = given is not None or has_loaded_adapter(policy)
        how = f": an adapter loads frozen ({MERGE}; PeftModel.from_pretrained has is_trainable=True)" if loaded else ""
        raise ValueError(f"model: expected trained weights, got none that requires a gradient{how}")
    groups = getattr(optimizer, "param_groups", None)
    if groups is not None and not any(id(parameter) in trained for group in groups for parameter in group["params"]):
        raise ValueError(
            "optimizers: expected an optimizer of the policy's trained weights, got one that has none of them: add the "
            "adapter to the model first"
        )


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Raise ValueError or OSError, with the folder, for a file that is not as ``save_pretrained`` writes it.

    For a damaged file transformers, tokenizers and safetensors raise errors of many kinds. For a folder that does not
    exist they ask a hub, so that one is refused first.
    """
    refuse_absent(name, "a folder written by save_pretrained, or a model name")
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        hint = what_is_here(name)
        if isinstance(error, ValueError | OSError) and name in str(error):
            if hint:
                raise ValueError(f"{one_line(error)}{hint}") from error
            raise
        said = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(
            f"{name}: expected a {what} written by save_pretrained, which cannot be loaded ({said}){hint}"
        ) from error


def embedding_rows(model: nn.Module) -> int:
    """Return the number of rows of a model's embedding: the token ids that it takes are those below."""
    embedding = cast(nn.Embedding, causal_lm(model).get_input_embeddings())
    return getattr(embedding, "num_embeddings", embedding.weight.shape[0])  # an adapter's embedding has only the weight


def pad_token_id_of(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> int:
    """Return the id for padding: the padding token, else the end-of-sequence token, else 0.

    Padding is masked, so any id serves that the model's embedding has a row for.
    """
    rows = embedding_rows(model)
    ids: tuple[Any, ...] = tokenizer.pad_token_id, tokenizer.eos_token_id, 0
    return next(pad for pad in ids if pad is not None and 0 <= pad < rows)


class KeptPadToken(TrainerCallback):
    """Undoes Trainer's adoption of a tokenizer's pad token for which the model has no row.

    A model saved with such an id in its config could not be loaded.
    """

    def __init__(self, model: nn.Module) -> None:
        inside, self.rows = causal_lm(model), embedding_rows(model)
        configs = inside.config.get_text_config(), getattr(inside, "generation_config", None)
        self.before = [(config, getattr(config, "pad_token_id", None)) for config in configs if config is not None]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for config, pad in self.before:
            if (getattr(config, "pad_token_id", None) or 0) >= self.rows:
                config.pad_token_id = pad


def identify(model: PreTrainedModel) -> dict[str, Any]:
    """Return the identity of a model: its class, number of elements, and CRC-32 of names and shapes."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    names = "\n".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
    numbers = sum(math.prod(shape) for shape in shapes.values())
    return {"class": type(model).__name__, "numbers": numbers, "shapes": zlib.crc32(names.encode())}


def check_token_ids(kind: str, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Raise ValueError unless the model's embedding has a row for every token of the examples.

    Args:
        kind: name of the data, for the message.
        examples: the data.
        tokenizer: gives the text of a token.
        rows: rows of the embedding.
    """
    if isinstance(examples, StoredExamples) and examples.arrays["ids"].max(initial=0) < rows:
        return
    for place, example in enumerate(examples):
        for ids in (example.prompt_ids, *example.completions):
            if len(ids) and int(ids.max()) >= rows:
                token = int(ids[ids >= rows][0])
                raise ValueError(
                    f"{kind} example {place}: expected token ids below {rows}, the rows of the model's embedding, got "
                    f"token {tokenizer.convert_ids_to_tokens(token)!r} (id {token}): use the model's own tokenizer, or "
                    "give the model a row for every token (model.resize_token_embeddings(len(tokenizer)))"
                )


def lengths_of(examples: Sequence[Example], sampled: int = 0) -> Iterable[tuple[int, int]]:
    """Return of each example the tokens of its prompt and of its longest completion; ``sampled`` if it has none."""
    if not isinstance(examples, StoredExamples):
        return ((len(e.prompt_ids), max(map(len, e.completions), default=sampled)) for e in examples)
    sizes = examples.sizes
    completions = sizes[:, 1:].max(axis=1) if sizes.shape[1] > 1 else np.full(len(sizes), sampled)
    return zip(sizes[:, 0].tolist(), completions.tolist(), strict=True)


class Checked(NamedTuple):
    """What :func:`check_data` found.

    Attributes:
        longest: length of the longest sequence, tokens.
        warning: of positions that the policy computes but was not made for, or None.
    """

    longest: int
    warning: str | None


def check_data(
    policy: nn.Module,
    reference: nn.Module | None,
    data: RunData,
    tokenizer: PreTrainedTokenizerBase,
    config: HumanlineConfig,
    objective: Objective,
) -> Checked:
    """Check that the models of a run can take its tokens and lengths.

    Args:
        policy: the policy.
        reference: a reference model of its own, if one was given.
        data: the data. Samples of up to ``max_completion_length`` tokens follow the prompts of rounds, and those that
            an evaluation answers.
        tokenizer: gives the text of a token.
        config, objective: the settings, and whether mismatched pairs are scored.

    Raises:
        ValueError: a model has no row for a token, or no position for a sequence; or there is nothing to evaluate.
    """
    if (config.evaluates or config.eval_on_start) and not data.held_out_examples:
        name, off = ("eval_strategy", "no") if config.evaluates else ("eval_on_start", "false")
        raise ValueError(
            f"{name}: expected an eval_dataset, an eval_fraction (without one a share is held out where it is 8 "
            f"examples, and in rounds none), or {off}, got none of them"
        )
    models = [policy]
    if reference is not None and isinstance(causal_lm(reference), PreTrainedModel):
        models.append(reference)
    rows, longest = min(map(embedding_rows, models)), Longest(0, "")
    settings: dict[str, Any] = {"max_length": config.max_length, "mismatched": objective.mismatched}
    answered = data.held_out_prompts.examples if data.held_out_prompts else ()
    kinds: list[tuple[str, Sequence[Example], bool]] = [
        ("training", data.train.examples, bool(config.rollout_every)),
        ("held-out", data.held_out_examples, False),
        ("held-out", answered, True),
    ]
    for kind, examples, drawn in kinds:
        check_token_ids(kind, examples, tokenizer, rows)
        sampled = config.max_completion_length if drawn else 0
        followed = f" and max_completion_length={sampled}" if sampled else ""
        longest = max(longest, longest_sequence(kind, lengths_of(examples, sampled), **settings, followed=followed))
    warnings = [check_positions(position_limit_of(model), longest, config.max_length) for model in models]
    return Checked(longest.tokens, warnings[0])


def disable_dropout_(model: nn.Module) -> None:
    """Set every dropout probability to 0, in modules and in float attributes of attention layers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)
