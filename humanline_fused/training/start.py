"""Loads and checks the policy and its tokenizer."""

import math
import os
import zlib
from collections.abc import Sequence
from typing import Any, cast

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.examples import Example


def load_policy(
    model: PreTrainedModel | str | os.PathLike[str] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    config: HumanlineConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the policy and its tokenizer, loaded if given by name, with dropout off if the config says so."""
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
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(name))
    if isinstance(model, str):
        model = cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(model, dtype=config.model_dtype))
    if config.disable_dropout:
        disable_dropout_(model)
    return model, tokenizer


def pad_token_id_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the id for padding: the padding token, else the end-of-sequence token, else 0."""
    pad = tokenizer.pad_token_id
    return (tokenizer.eos_token_id or 0) if pad is None else pad


def identify(model: PreTrainedModel) -> dict[str, Any]:
    """Return the identity of a model: its class, number of elements, and CRC-32 of names and shapes."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    names = "\n".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
    numbers = sum(math.prod(shape) for shape in shapes.values())
    return {"class": type(model).__name__, "numbers": numbers, "shapes": zlib.crc32(names.encode())}


def check_token_ids(examples: Sequence[Example], pad_token_id: Any, model: PreTrainedModel) -> None:
    """Raise ValueError unless the model's embedding has a row for every token id."""
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    rows = getattr(embedding, "num_embeddings", embedding.weight.shape[0])  # an adapter's embedding has only the weight
    sequences = (ids for example in examples for ids in (example.prompt_ids, *example.completions) if len(ids))
    largest = max(pad_token_id, *(int(ids.max()) for ids in sequences))
    if largest >= rows:
        raise ValueError(
            f"expected token ids below {rows}, the rows of the model's embedding, got {largest}: "
            "does the tokenizer belong to another model?"
        )


def disable_dropout_(model: nn.Module) -> None:
    """Set every dropout probability to 0, in modules and in float attributes of attention layers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)
