"""The LoRA adapter of a run's settings."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, set_seed

from humanline_fused.training.model_settings import ALL_LINEAR, ModelSettings

MERGE = "`humanline merge ADAPTER --output DIR` makes a whole model"


def has_loaded_adapter(model: nn.Module) -> bool:
    """Return True for a model that transformers loaded from an adapter's folder: its base weights with the adapter."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def with_adapter(model: PreTrainedModel, settings: ModelSettings, given: Any = None, *, seed: int) -> PreTrainedModel:
    """Return the model with a new adapter, if the settings or a ``peft_config`` ask for one.

    Args:
        model: the base model. Its weights are frozen if there is an adapter.
        settings: with ``lora_r``, the adapter's settings.
        given: a configuration of peft, in place of the settings.
        seed: of the adapter's initial weights.

    Raises:
        ValueError: both ask for one, the model has one already, peft is not installed, or the model has no such layers.
    """
    rank = settings.lora_r
    if rank is None and given is None:
        return model
    if rank is not None and given is not None:
        raise ValueError(f"peft_config: expected None with lora_r={rank}, got {type(given).__name__}")
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ImportError as missing:
        raise ValueError(
            "lora_r: expected peft, which is not installed (pip install 'humanline-fused[peft]')"
        ) from missing
    name = "lora_r" if given is None else "peft_config"
    if isinstance(model, PeftModel) or has_loaded_adapter(model):
        raise ValueError(f"{name}: expected None with a model that has an adapter, got {given or rank} ({MERGE})")
    if rank is not None:
        targets = _targets(model, settings.lora_target_modules or [ALL_LINEAR])
        alpha = 2 * rank if settings.lora_alpha is None else settings.lora_alpha
        given = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
    assert given is not None
    set_seed(seed)
    with without_peft_warning():
        return cast(PreTrainedModel, get_peft_model(model, given))


@contextmanager
def without_peft_warning() -> Iterator[None]:
    """Drop transformers' warning of an attribute that peft reads, and no user, until exit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _targets(model: nn.Module, names: list[str]) -> list[str] | str:
    """Return peft's ``target_modules``; every name must be one of a layer, or a path's end."""
    if names == [ALL_LINEAR]:
        return ALL_LINEAR
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            here = ", ".join(dict.fromkeys(path.rsplit(".", 1)[-1] for path in paths))
            expected = f"expected {ALL_LINEAR} or layers of the model ({here})"
            raise ValueError(f"lora_target_modules: {expected}, got {name!r}")
    return names
