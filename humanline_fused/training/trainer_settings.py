"""Settings of transformers' TrainingArguments that it takes unchecked, or that change what a run saves."""

import math
from numbers import Integral, Real
from typing import Any

from humanline_fused.training.objectives.settings import expect, json_mapping

COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
"""Integers from 1."""

RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Settings under two names in newer versions of transformers, which warn of the one that all versions have."""

MAPPINGS = ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
"""A mapping, or JSON text of one."""

MAPPINGS_OR_FILES = ("accelerator_config", "fsdp_config", "deepspeed")
"""The same, or a file."""


def check_trainer_settings(config: Any) -> None:
    """Check numbers and mappings before transformers reads them; it would divide by 0, or ignore them.

    Settings that it renamed get the newer name too.

    Raises:
        ValueError: one is out of its range, or no mapping.
    """
    for name, newer in RENAMED.items():
        if getattr(config, newer, config) is None:  # a version without the name has none to set
            setattr(config, newer, getattr(config, name))
    for name in COUNTS:
        expect(config, name, _is_integer(getattr(config, name), 1), "an integer >= 1")
    steps, epochs = config.max_steps, config.num_train_epochs
    expect(config, "max_steps", steps == -1 or _is_integer(steps, 1), "an integer >= 1, or -1 (num_train_epochs)")
    if steps == -1:
        expect(config, "num_train_epochs", _is_above(epochs, 0) and math.isfinite(epochs), "a finite number > 0")
    norm = config.max_grad_norm
    expect(config, "max_grad_norm", norm == 0 or _is_above(norm, 0), "a number >= 0")
    for kind, unset in (("save", ()), ("eval", (None, 0))):  # without eval_steps those of the log count
        name, strategy = f"{kind}_steps", f"{kind}_strategy"
        value = getattr(config, name)
        if getattr(config, strategy) == "steps" and value not in unset:
            expect(config, name, _is_above(value, 0), f"a number > 0 with {strategy}='steps'")
    for name in MAPPINGS + MAPPINGS_OR_FILES:
        given = getattr(config, name, None)
        if isinstance(given, str) and (name in MAPPINGS or given.lstrip().startswith("{")):
            json_mapping(name, given)


def _is_integer(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _is_above(value: Any, limit: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and float(value) > limit
