"""Whole trainers of others, for DPO with a reference that follows the policy. They train on records in their order."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.kernels.cases import LOGITS_CASES
from benchmarks.objectives import OBJECTIVES
from benchmarks.peers.halos import log_probs, loss_on_log_probs
from benchmarks.peers.installed import TRL_VERSION, installed_obstacle
from humanline_fused import shift_targets

TRL = (
    f"trl {TRL_VERSION}: DPOTrainer, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=1.0, "
    "pad_to_multiple_of=None; its reference moves after the update, not before it"
)
HALOS = "ContextualAI/HALOs at aa02f66, train/trainers.py PairedPreferenceTrainer (followed), in transformers' loop"

Record = dict[str, str]
Example = list[tuple[int, Tensor]]
"""Of the chosen and the rejected sequence: tokens of the prompt, and all ids."""


class HalosTrainer(Trainer):
    """As ContextualAI/HALOs at aa02f66 trains: log-softmax in float32 of all logits, of the policy and of a second
    model, which loads the policy's state dict before every update.

    transformers' loop stands for HALOs' own, which does the same around the loss: backward, clip, sync, step.
    """

    def __init__(self, model: Any, args: TrainingArguments, train_dataset: list[Example], pad_token_id: int) -> None:
        def collated(examples: Sequence[Example]) -> dict[str, Tensor]:
            prompts, sequences = zip(*(example[side] for side in (0, 1) for example in examples), strict=True)
            ids = pad_sequence(list(sequences), batch_first=True, padding_value=pad_token_id)
            column, ends = torch.arange(ids.shape[1]), torch.tensor([[len(sequence)] for sequence in sequences])
            there, completion = column < ends, column >= torch.tensor(prompts)[:, None]
            return {"input_ids": ids, "attention_mask": there.long(), "completion_mask": there & completion}

        data: Any = train_dataset
        super().__init__(model=model, args=args, train_dataset=data, data_collator=collated)  # pyright: ignore[reportArgumentType]
        self.model_accepts_loss_kwargs = False
        self.reference = copy.deepcopy(model).requires_grad_(False).eval()
        self.add_callback(_LoadStateDict(self.reference))
        self.sequence_logps = torch.zeros(())

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        ids, mask = shift_targets(inputs["input_ids"], inputs["completion_mask"])

        def scored(scorer: Any) -> Tensor:
            logits = scorer(inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
            return log_probs(logits, ids, mask)

        logp = scored(model)
        with torch.no_grad(), self.compute_loss_context_manager():
            ref_logp = scored(self.reference)
        self.sequence_logps = logp.detach().sum(-1)
        return loss_on_log_probs(LOGITS_CASES["dpo"], logp, ref_logp, inputs)

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
    def sequence(record: Record, side: str) -> tuple[int, Tensor]:
        prompt, whole = record["prompt"], f"{record['prompt']}{record[side]}{tokenizer.eos_token}"
        return len(tokenizer(prompt)["input_ids"]), torch.tensor(tokenizer(whole)["input_ids"])

    args = TrainingArguments(**arguments, remove_unused_columns=False, train_sampling_strategy="sequential")
    examples = [[sequence(record, side) for side in ("chosen", "rejected")] for record in records]
    return HalosTrainer(model, args, examples, tokenizer.pad_token_id)


def import_trl() -> None:
    """Its trainer's module, which is imported when it is first asked for."""
    from trl.trainer.dpo_trainer import DPOTrainer  # noqa: F401


def trl_trainer(model: Any, tokenizer: Any, records: list[Record], T: int, arguments: dict[str, Any]) -> Trainer:
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    given: dict[str, Any] = {"gradient_checkpointing": False} | arguments  # its default is True
    args = DPOConfig(
        **given,
        beta=OBJECTIVES["dpo"].settings["beta"],
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
        train_dataset=Dataset.from_list([*records]),
        processing_class=tokenizer,
    )


def trl_obstacle() -> str | None:
    return installed_obstacle("trl", TRL_VERSION, "accelerate", "datasets")
