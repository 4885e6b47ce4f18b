"""Whole trainers of others, and humanline in theirs."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.kernels.cases import LOGITS_CASES
from benchmarks.objectives import OBJECTIVES
from benchmarks.peers.halos import log_probs, loss_on_log_probs
from benchmarks.peers.installed import TRL_VERSION
from humanline_fused import __version__, shift_targets

TRL = (
    f"trl {TRL_VERSION}: DPOTrainer, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=1.0, "
    "pad_to_multiple_of=None; its reference moves after the update, not before it"
)
TRL_OWN = f"trl {TRL_VERSION}: {{}}, its reference a second model that stays as it is, pad_to_multiple_of=None"
IN_TRL = f"humanline_fused {__version__}: {{}}, sync_every=1, in trl {TRL_VERSION}"
HALOS = "ContextualAI/HALOs at aa02f66, train/trainers.py PairedPreferenceTrainer (followed), in transformers' loop"

NO_PACKING = f"TRL {TRL_VERSION}'s DPOTrainer turns padding_free off: its warning says temporarily unavailable"
NO_GROUPS = (
    f"TRL {TRL_VERSION}'s GRPOTrainer samples its completions, and its ratio is to the policy itself at each step"
)

Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """The input of every trainer."""

    model: Any
    tokenizer: Any
    objective: str
    records: list[Record]  # as HumanlineTrainer takes them
    in_order: list[Record]  # as its plan deals them, and as the others train on them
    max_length: int
    arguments: dict[str, Any]  # of TrainingArguments, and every trainer's own


Example = list[tuple[int, Tensor]]  # of the chosen and the rejected sequence: tokens of the prompt, and all ids


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
        self.sequence_logps: list[Tensor] = []  # of the step's forward passes: chosen, then rejected

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
        self.sequence_logps.append(logp.detach().sum(-1))
        return loss_on_log_probs(LOGITS_CASES["dpo"], logp, ref_logp, inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            sides = zip(*(logps.chunk(2) for logps in self.sequence_logps), strict=True)
            means = (torch.cat(side).mean().item() for side in sides)
            logs |= dict(zip(("logps/chosen", "logps/rejected"), means, strict=True))
            self.sequence_logps = []
        super().log(logs, start_time)


class _LoadStateDict(TrainerCallback):
    def __init__(self, reference: torch.nn.Module) -> None:
        self.reference = reference

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.reference.load_state_dict(kwargs["model"].state_dict())


def halos_trainer(task: Task) -> Trainer:
    def ids(text: str) -> Tensor:
        return torch.tensor(task.tokenizer(text)["input_ids"])

    def sequence(record: Record, side: str) -> tuple[int, Tensor]:
        prompt = record["prompt"]
        return len(ids(prompt)), ids(f"{prompt}{record[side]}{task.tokenizer.eos_token}")

    args = TrainingArguments(**task.arguments, remove_unused_columns=False, train_sampling_strategy="sequential")
    examples = [[sequence(record, side) for side in ("chosen", "rejected")] for record in task.in_order]
    return HalosTrainer(task.model, args, examples, task.tokenizer.pad_token_id)


def import_trl() -> None:
    """Its trainers' modules, which are imported when they are first asked for."""
    from trl.trainer.dpo_trainer import DPOTrainer  # noqa: F401
    from trl.trainer.kto_trainer import KTOTrainer  # noqa: F401


def import_humanline_in_trl() -> None:
    import humanline_fused.integrations.trl  # noqa: F401


def trl_trainer(task: Task) -> Trainer:
    """TRL's, whose reference is a second model."""
    return trl_kto(task) if task.objective == "kto" else trl_dpo(task)


def trl_dpo(task: Task, **settings: Any) -> Any:
    from trl.trainer.dpo_trainer import DPOTrainer

    return _in_trl(DPOTrainer, task, settings, ref_model=copy.deepcopy(task.model))


def trl_kto(task: Task) -> Any:
    from trl.trainer.kto_trainer import KTOTrainer

    return _in_trl(KTOTrainer, task, {}, ref_model=copy.deepcopy(task.model))


def synced_trl_trainer(task: Task) -> Trainer:
    return trl_dpo(task, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=1.0)


def humanline_in_trl(task: Task) -> Trainer:
    from humanline_fused.integrations.trl import HumanlineDPOTrainer, HumanlineKTOTrainer

    return _in_trl(HumanlineKTOTrainer if task.objective == "kto" else HumanlineDPOTrainer, task, {})


def _in_trl(kind: Any, task: Task, settings: Mapping[str, Any], **others: Any) -> Any:
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.kto_config import KTOConfig

    given: dict[str, Any] = {"gradient_checkpointing": False} | task.arguments  # its default is True
    given |= {"beta": OBJECTIVES[task.objective].settings["beta"], "max_length": task.max_length, **settings}
    given |= {"train_sampling_strategy": "sequential"}
    if task.objective == "kto":
        args, rows = KTOConfig(**given), _reversed(task.in_order, given["per_device_train_batch_size"])
    else:
        args, rows = DPOConfig(**given, pad_to_multiple_of=None), task.in_order
    data = Dataset.from_list([*rows])
    return kind(task.model, args=args, train_dataset=data, processing_class=task.tokenizer, **others)


def _reversed(rows: Sequence[Record], size: int) -> list[Record]:
    """Every micro-batch from its end to its start: TRL's mismatched pairs, with the completion before, are then ours,
    with the completion after.
    """
    return [row for start in range(0, len(rows), size) for row in reversed(rows[start : start + size])]
