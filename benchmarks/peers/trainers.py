"""Whole trainers of others, for DPO with a reference that follows the policy."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.kernels.cases import Targets
from benchmarks.kernels.logits import LOGITS_CASES
from benchmarks.peers.halos import log_probs, loss_on_log_probs
from benchmarks.peers.installed import TRL_VERSION, installed_obstacle, missing
from benchmarks.training.setting import Record
from humanline_fused import shift_targets
from humanline_fused.training.data.batch import collate
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.plan import MicroBatch
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.objectives import find_objective

TRL = (
    f"trl {TRL_VERSION}: DPOTrainer, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=1.0, "
    "pad_to_multiple_of=None; its reference moves after the update, not before it"
)
HALOS = "ContextualAI/HALOs at aa02f66, train/trainers.py PairedPreferenceTrainer (followed), in transformers' loop"
DPO = LOGITS_CASES["dpo"]


class HalosTrainer(Trainer):
    """As ContextualAI/HALOs at aa02f66 trains: log-softmax in float32 of all logits, of the policy and of a second
    model, which loads the policy's state dict before every update.

    transformers' loop stands for HALOs' own, which does the same around the loss: backward, clip, sync, step.
    """

    def __init__(self, model: Any, args: TrainingArguments, train_dataset: list[Example], pad_token_id: int) -> None:
        def batch(examples: list[Example]) -> dict[str, Tensor]:
            everyone = MicroBatch(ids := tuple(range(len(examples))), ids)
            longest = max(len(e.prompt_ids) + len(c) for e in examples for c in e.completions)
            padded = collate(examples, everyone, find_objective("dpo"), pad_token_id=pad_token_id, max_length=longest)
            return {name: padded[name] for name in ("input_ids", "attention_mask", "completion_mask")}

        data: Any = train_dataset
        super().__init__(model=model, args=args, train_dataset=data, data_collator=batch)  # pyright: ignore[reportArgumentType]
        self.model_accepts_loss_kwargs = False
        self.reference = copy.deepcopy(model).requires_grad_(False).eval()
        self.add_callback(_LoadStateDict(self.reference))
        self.sequence_logps = torch.zeros(())

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        ids, mask = shift_targets(inputs["input_ids"], inputs["completion_mask"])
        unused = torch.empty(0)
        targets = Targets(ids, mask, desirable=unused, advantages=unused)

        def scored(scorer: Any) -> Tensor:
            logits = scorer(inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
            return log_probs(logits, targets)

        logp = scored(model)
        with torch.no_grad(), self.compute_loss_context_manager():
            ref_logp = scored(self.reference)
        self.sequence_logps = logp.detach().sum(-1)
        return loss_on_log_probs(DPO, logp, ref_logp, targets)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            chosen, rejected = self.sequence_logps.chunk(2)
            logs |= {"logps/chosen": chosen.mean().item(), "logps/rejected": rejected.mean().item()}
        super().log(logs, start_time)


class _LoadStateDict(TrainerCallback):
    def __init__(self, reference: torch.nn.Module) -> None:
        self.reference = reference

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.reference.load_state_dict(kwargs["model"].state_dict())


def halos_trainer(model: Any, tokenizer: Any, records: list[Record], T: int, arguments: dict[str, Any]) -> Trainer:
    """The records are trained on in their order."""
    args = TrainingArguments(**arguments, remove_unused_columns=False, train_sampling_strategy="sequential")
    examples = prepare(records, tokenizer, find_objective("dpo"), max_length=T).examples
    return HalosTrainer(model, args, examples, tokenizer.pad_token_id)


def import_trl() -> None:
    """Its trainer's module, which is imported when it is first asked for."""
    from trl.trainer.dpo_trainer import DPOTrainer  # noqa: F401


def trl_trainer(model: Any, tokenizer: Any, records: list[Record], T: int, arguments: dict[str, Any]) -> Trainer:
    """The records are trained on in their order."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    given: dict[str, Any] = {"gradient_checkpointing": False} | arguments  # its default is True
    args = DPOConfig(
        **given,
        beta=DPO.settings["beta"],
        max_length=T,
        pad_to_multiple_of=None,
        sync_ref_model=True,
        ref_model_sync_steps=1,
        ref_model_mixup_alpha=1.0,
        train_sampling_strategy="sequential",
    )
    return DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=args,
        train_dataset=Dataset.from_list([dict(record) for record in records]),
        processing_class=tokenizer,
    )


def trl_obstacle() -> str | None:
    absent = missing("accelerate", "datasets")
    return installed_obstacle("trl", TRL_VERSION) or (f"it needs {', '.join(absent)}" if absent else None)
