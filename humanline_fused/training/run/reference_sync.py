"""When a copied reference follows the policy: Trainer's hook for what humanline asks for."""

from typing import Any

from transformers import TrainerCallback

from humanline_fused.reference import AdapterReference, CopyReference


class ReferenceSync(TrainerCallback):
    """Syncs a copied reference where humanline asks for it: after backward and clipping, before the update."""

    def __init__(self, reference: CopyReference | AdapterReference) -> None:
        self.reference = reference

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.reference.before_optimizer_step(state.global_step, kwargs["model"])
