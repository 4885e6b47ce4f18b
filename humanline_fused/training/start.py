"""What a run starts from: the policy and its tokenizer."""

from typing import cast

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from humanline_fused.training.config import HumanlineConfig


def load_policy(
    model: PreTrainedModel | str | None, tokenizer: PreTrainedTokenizerBase | None, config: HumanlineConfig
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy and its tokenizer, loaded where they were named. Dropout is off if the config asks for it."""
    model = config.model if model is None else model
    if model is None:
        raise ValueError("model: expected a folder that save_pretrained wrote, a name or a model, got None")
    name = model if isinstance(model, str) else model.config._name_or_path
    if tokenizer is None:
        if not name:
            raise ValueError(
                "processing_class: expected the tokenizer of a model that was not loaded by name, got None"
            )
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(name))
    if isinstance(model, str):
        model = cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(model, dtype=config.model_dtype))
    if config.disable_dropout:
        disable_dropout_(model)
    return model, tokenizer


def disable_dropout_(model: nn.Module) -> None:
    """Set every dropout to 0: the modules, and the probabilities that attention layers keep as numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)
