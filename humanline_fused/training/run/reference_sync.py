"""Trainer callback that syncs a copied reference."""

from typing import Any

from transformers import TrainerCallback

from humanline_fused.reference import AdapterReference, CopyReference


class ReferenceSync(TrainerCallback):
    """Syncs a copied reference after backward and gradient clipping, before the update."""

    def __init__(self, reference: CopyReference | AdapterReference) -> None:
        self.reference = reference

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.reference.before_optimizer_step(state.global_step, kwargs["model"])
