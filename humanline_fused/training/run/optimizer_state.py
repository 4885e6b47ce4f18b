"""The state of an optimizer that a checkpoint holds."""

from typing import Any


def check_kind(optimizer: Any, folder: str) -> None:
    """Check that an optimizer has the settings that its class needs, after the state of a checkpoint was loaded.

    torch loads the groups of any other optimizer, which then lack settings at the first step.

    Args:
        optimizer: with the state; an engine's own is not looked at.
        folder: of the checkpoint.

    Raises:
        ValueError: the checkpoint is of another kind of optimizer.
    """
    needed = getattr(optimizer, "defaults", None) or {}
    for group in getattr(optimizer, "param_groups", ()):
        if lacking := [name for name in needed if name not in group]:
            kind = type(getattr(optimizer, "optimizer", optimizer)).__name__  # accelerate wraps it
            raise ValueError(
                f"expected the kind of optimizer that {folder} was written with, whose state has no {lacking[0]!r}, "
                f"got {kind}: resume with the same optim, or start a new run from the weights"
            )
