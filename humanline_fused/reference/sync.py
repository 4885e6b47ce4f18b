"""Synced reference as a second model, which the policy overwrites in place every k optimizer steps."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from humanline_fused.reference.lookahead import TokenScores

WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module")
"""Path components that DDP, torch.compile and activation checkpointing add to parameter names."""


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = chain(model.named_parameters(), model.named_buffers())
    return {".".join(part for part in name.split(".") if part not in WRAPPERS): tensor for name, tensor in named}


def _some(names: Iterable[str], shown: int = 5) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:shown]) + (f" and {len(ordered) - shown} more" if len(ordered) > shown else "")


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part of the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _layout(tensor: Tensor) -> Any:
    return (tensor.placements, tensor.device_mesh) if isinstance(tensor, DTensor) else "whole"


def refuse_shared_storage(reference: nn.Module, policy: nn.Module) -> None:
    """Raise ValueError, with the names, if reference and policy share a parameter or buffer."""
    _refuse_shared(_tensors(reference), _tensors(policy))


def _refuse_shared(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    storage = {_local(tensor).data_ptr() for tensor in theirs.values()} - {0}
    shared = {name for name, tensor in mine.items() if _local(tensor).data_ptr() in storage}
    if shared:
        raise ValueError(f"expected the reference to have its own storage, but it shares the policy's: {_some(shared)}")


def pair_tensors(reference: nn.Module, policy: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return parameters and buffers of both models, paired by name without wrapper prefixes.

    Raises:
        ValueError: names, shapes or shards differ, or storage is shared. The message says which.
    """
    return pair_by_name(_tensors(reference), _tensors(policy))


def pair_by_name(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Pair tensors of the reference and the policy, given by name; see :func:`pair_tensors`."""
    if mine.keys() != theirs.keys():
        sides = {"policy": theirs.keys() - mine.keys(), "reference": mine.keys() - theirs.keys()}
        differences = [f"only the {side} has {_some(names)}" for side, names in sides.items() if names]
        raise ValueError(f"expected reference and policy to have the same parameters: {'; '.join(differences)}")
    for what, of in (("shapes", lambda tensor: list(tensor.shape)), ("shards", _layout)):
        both = {name: (of(mine[name]), of(theirs[name])) for name in mine}
        different = [f"{name} ({r} in the reference, {p} in the policy)" for name, (r, p) in both.items() if r != p]
        if different:
            raise ValueError(f"expected reference and policy to have the same {what}, got {_some(different)}")
    _refuse_shared(mine, theirs)
    return list(mine.values()), [theirs[name] for name in mine]


@torch.no_grad()
def sync_reference_(reference: nn.Module, policy: nn.Module) -> None:
    """Copy the policy's parameters and buffers into the reference's own storage, cast to its dtype.

    This is a full copy, not an average. Tensors are paired by name without wrapper prefixes (DDP, torch.compile).
    Under FSDP2 every rank copies its own shards, without communication.

    Args:
        reference: overwritten in place; afterwards it equals the policy and shares no storage with it.
        policy: only read.

    Raises:
        ValueError: names, shapes or shards differ, or storage is shared. The message says which; nothing was copied.

    Source: arXiv 2509.24207, section 4 (the sync).

    >>> policy, reference = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> sync_reference_(reference, policy)
    >>> torch.equal(reference.weight, policy.weight)
    True
    """
    for module in chain(reference.modules(), policy.modules()):
        if isinstance(module, FSDPModule):
            module.reshard()  # a forward pass may have left this module unsharded, which hides its shards
    mine, theirs = pair_tensors(reference, policy)
    torch._foreach_copy_([*map(_local, mine)], [*map(_local, theirs)])  # pyright: ignore[reportPrivateImportUsage]


class CopyReference:
    """A second, frozen model, synced every ``sync_every`` optimizer steps, or never.

    Args:
        score: takes a step and returns the log-probs of its micro-batches under ``model``.
        model: the reference.
        sync_every: k ≥ 1, in optimizer steps; None never syncs.
    """

    def __init__(self, score: Callable[[int], list[TokenScores]], model: nn.Module, sync_every: int | None) -> None:
        self.score = score
        self.model = model
        self.sync_every = sync_every

    def scores(self, step: int, last_step: int) -> list[TokenScores]:
        """Return the reference's log-probs for ``step``, under the current model (next sync: before the next step)."""
        return self.score(step)

    def before_optimizer_step(self, step: int, policy: nn.Module) -> None:
        """Sync at steps 0, k, 2k … Call after backward and gradient clipping, *before* the update.

        After the update the reference would equal the policy of the next loss: with k = 1 every log-ratio would be 0.
        """
        if self.sync_every is not None and step % self.sync_every == 0:
            sync_reference_(self.model, policy)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: whole tensors on the CPU. Collective; empty except on the first rank."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return {"model": get_model_state_dict(self.model, options=options)}

    def load_state_dict(self, state: dict[str, Any], step: int, last_step: int) -> None:
        """Continue from the first rank's :meth:`state_dict`, at any step, on any number of ranks."""
        set_model_state_dict(self.model, state["model"], options=StateDictOptions(full_state_dict=True))
