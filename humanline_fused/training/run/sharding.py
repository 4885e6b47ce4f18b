"""Engines: their names, what they do not support, sharding of the reference, and export of the whole model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn


def engine_of(accelerator: Accelerator) -> str:
    """Return the engine that trains and keeps the optimizer's state, in a format of its own.

    ``torch`` (one process or DDP), ``fsdp2`` or, with its stage, ``deepspeed ZeRO-2``.
    """
    match accelerator.distributed_type:
        case DistributedType.DEEPSPEED:
            plugin: Any = accelerator.state.deepspeed_plugin
            return f"deepspeed ZeRO-{plugin.zero_stage}"
        case DistributedType.FSDP:
            return "fsdp2" if accelerator.is_fsdp2 else "fsdp1"
    return "torch"


def engine_of_files(folder: Path) -> str:
    """Return the engine that wrote a checkpoint, without version and stage, by the names of its files.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     (Path(folder) / "global_step2").mkdir()
    ...     engine_of_files(Path(folder))
    'deepspeed'
    """
    if any(folder.glob("global_step*")):
        return "deepspeed"
    return "fsdp" if any(folder.glob("optimizer_*")) or any(folder.glob("pytorch_model_fsdp*")) else "torch"


def refuse_engine(accelerator: Accelerator, reference: str, *, sampled: bool = False, cut: bool = False) -> None:
    """Raise ValueError if the engine does not support this reference, samples or cut micro-batches, or is FSDP 1."""
    kind = accelerator.distributed_type
    fsdp1 = kind == DistributedType.FSDP and not accelerator.is_fsdp2
    instead = {
        "copy": "reference='lookahead': the same numbers without a second model",
        "frozen": "reference='lookahead' with sync_every >= max_steps: the initial policy, scored ahead",
    }
    if reference in instead and (fsdp1 or kind == DistributedType.DEEPSPEED):
        raise ValueError(
            f"reference={reference!r}: expected a whole model in every process, or FSDP2. Under FSDP 1 and DeepSpeed "
            f"use {instead[reference]}"
        )
    if sampled and kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            "rollout_every, reward: expected a whole model in every process to sample from. Under FSDP and DeepSpeed "
            "sample beforehand, and train offline"
        )
    if cut and kind == DistributedType.DEEPSPEED:
        raise ValueError(
            "max_tokens_per_micro_batch: expected None under DeepSpeed, whose engine counts backward passes. Use a "
            "smaller per_device_train_batch_size with more gradient_accumulation_steps"
        )
    if reference == "adapter" and kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            "reference='adapter': expected a whole model in every process. Under FSDP and DeepSpeed use "
            "reference='lookahead': the same numbers without a second adapter"
        )
    if fsdp1:
        raise ValueError("fsdp_version: expected 2, got 1, which replaces parameters by flat ones")


def prepare_reference(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Place, cast and shard a model that is not trained as the accelerator does with the policy."""
    if accelerator.is_fsdp2:
        # accelerate shards a model only together with an optimizer, which is discarded here.
        model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
    else:
        model = accelerator.prepare_model(model.requires_grad_(False), evaluation_mode=True)
    accelerator.free_memory()  # otherwise accelerate treats this first prepared model as the policy
    return model.requires_grad_(False).eval()


@contextmanager
def whole_state_dict(accelerator: Accelerator) -> Iterator[None]:
    """Make Trainer export a whole model: with ``SHARDED_STATE_DICT``, FSDP2's default, it would write nothing."""
    if not accelerator.is_fsdp2:
        yield
        return
    plugin: Any = accelerator.state.fsdp_plugin
    before = plugin.state_dict_type
    plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        yield
    finally:
        plugin.set_state_dict_type(before)
