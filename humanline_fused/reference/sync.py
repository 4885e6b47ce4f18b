"""A reference that is a second model, overwritten in place by the policy every k optimizer steps."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from humanline_fused.reference.lookahead import TokenScores

WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module")
"""Path components that DDP, torch.compile and activation checkpointing put into parameter names."""


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = chain(model.named_parameters(), model.named_buffers())
    return {".".join(part for part in name.split(".") if part not in WRAPPERS): tensor for name, tensor in named}


def _some(names: Iterable[str], shown: int = 5) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:shown]) + (f" and {len(ordered) - shown} more" if len(ordered) > shown else "")


def refuse_shared_storage(reference: nn.Module, policy: nn.Module) -> None:
    """Raise ValueError, with the names, where a parameter or buffer of the reference is the policy's too."""
    _refuse_shared(_tensors(reference), _tensors(policy))


def _refuse_shared(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    storage = {tensor.data_ptr() for tensor in theirs.values()} - {0}
    shared = {name for name, tensor in mine.items() if tensor.data_ptr() in storage}
    if shared:
        raise ValueError(f"expected the reference to have its own storage, but it shares the policy's: {_some(shared)}")


def pair_tensors(reference: nn.Module, policy: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers of both models, paired by name without the prefixes of wrappers.

    Raises:
        ValueError: names or shapes differ, or storage is shared. The message says which.
    """
    return pair_by_name(_tensors(reference), _tensors(policy))


def pair_by_name(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """:func:`pair_tensors` for tensors of the reference and of the policy by name."""
    if mine.keys() != theirs.keys():
        sides = {"policy": theirs.keys() - mine.keys(), "reference": mine.keys() - theirs.keys()}
        differences = [f"only the {side} has {_some(names)}" for side, names in sides.items() if names]
        raise ValueError(f"expected reference and policy to have the same parameters: {'; '.join(differences)}")
    shapes = {
        f"{name} ({list(mine[name].shape)} in the reference, {list(theirs[name].shape)} in the policy)"
        for name in mine
        if mine[name].shape != theirs[name].shape
    }
    if shapes:
        raise ValueError(f"expected reference and policy to have the same shapes, got {_some(shapes)}")
    _refuse_shared(mine, theirs)
    return list(mine.values()), [theirs[name] for name in mine]


@torch.no_grad()
def sync_reference_(reference: nn.Module, policy: nn.Module) -> None:
    """Copy the policy's parameters and buffers into the reference's own storage, cast to its dtype.

    A full copy, not an average. Tensors are paired by name without the prefixes of wrappers (DDP, torch.compile).

    Args:
        reference: overwritten in place; afterwards it equals the policy and shares nothing with it.
        policy: read.

    Raises:
        ValueError: names or shapes differ, or storage is shared. The message says which; nothing was copied.

    Source: arXiv 2509.24207, section 4 (the sync).

    >>> policy, reference = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> sync_reference_(reference, policy)
    >>> torch.equal(reference.weight, policy.weight)
    True
    """
    torch._foreach_copy_(*pair_tensors(reference, policy))  # pyright: ignore[reportPrivateImportUsage]


class CopyReference:
    """A frozen model beside the policy; synced every ``sync_every`` optimizer steps, or never.

    Args:
        score: takes a step and returns the log-probs of its micro-batches under ``model``.
        model: the reference.
        sync_every: k ≥ 1, in optimizer steps; None keeps the model as it is.
    """

    def __init__(self, score: Callable[[int], list[TokenScores]], model: nn.Module, sync_every: int | None) -> None:
        self.score = score
        self.model = model
        self.sync_every = sync_every

    def scores(self, step: int, last_step: int) -> list[TokenScores]:
        """The reference's log-probs for ``step``, under the model as it stands (it moves only before the next step)."""
        return self.score(step)

    def before_optimizer_step(self, step: int, policy: nn.Module) -> None:
        """Sync if it is ``step``'s turn: 0, k, 2k … To be called after backward and clipping, *before* the update.

        After the update the reference would equal the policy of the next loss: with k = 1 every log-ratio would be 0.
        """
        if self.sync_every is not None and step % self.sync_every == 0:
            sync_reference_(self.model, policy)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any], step: int, last_step: int) -> None:
        """Continue from :meth:`state_dict`, at any step."""
        self.model.load_state_dict(state["model"])
