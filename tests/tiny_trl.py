"""TRL's trainers and the humanline trainers on the tiny model."""

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import peft
import torch
from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from humanline_fused.integrations.trl import HumanlineDPOTrainer, HumanlineKTOTrainer
from tests.tiny_model import records, tiny_model, tiny_tokenizer

STEPS = 5
BATCH = 2
ACCUMULATION = 2
TRAINERS = {"dpo": (DPOTrainer, HumanlineDPOTrainer, DPOConfig), "kto": (KTOTrainer, HumanlineKTOTrainer, KTOConfig)}
# Bounds that clamp tokens at the learning rate of the tiny runs.
TIGHT = {"log_epsilon_P": -0.1, "log_epsilon_R": 0.05}
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": ACCUMULATION,
    "max_steps": STEPS,
    "learning_rate": 0.5,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "optim": "sgd",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": 32,
    "beta": 0.5,
    "train_sampling_strategy": "sequential",
}


def make(kind: Any, config: Any, output_dir: Path, rows: Any = None, model: Any = None, **settings: Any) -> Any:
    """Return a trainer of TRL or a humanline trainer on the tiny records of the objective."""
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL sends telemetry for every trainer
    objective = "dpo" if config is DPOConfig else "kto"
    names = ("humanline", "ref_model", "peft_config", "callbacks", "eval_dataset")
    given = {name: settings.pop(name) for name in names if name in settings}
    rows = records(objective, STEPS * BATCH * ACCUMULATION) if rows is None else rows
    args = config(output_dir=str(output_dir), **SETTINGS | settings)
    model = tiny_model() if model is None else model
    data = Dataset.from_list(rows)
    return kind(model, args=args, train_dataset=data, processing_class=tiny_tokenizer(), **given)


def ours(objective: str, output_dir: Path, **settings: Any) -> Any:
    _, kind, config = TRAINERS[objective]
    return make(kind, config, output_dir, **settings)


def run(trainer: Any, **how: Any) -> Any:
    trainer.train(**how)
    return trainer


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logged(trainer: Any, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


def start(folder: Path) -> Path:
    """Return a folder with the tiny model, from which TRL loads its reference."""
    tiny_model().save_pretrained(folder)
    return folder


def adapted() -> Any:
    """Return a LoRA policy that differs from its base, with dropout in the adapter."""
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["v_proj", "down_proj"], lora_dropout=0.3, init_lora_weights=False
    )
    base = tiny_model()
    torch.manual_seed(1)
    return peft.get_peft_model(base, config)


def exact_pass(model: Any) -> Any:
    """Return a function that takes TRL's inputs and returns its output, from all of the model's logits."""

    def forward(input_ids: torch.Tensor, labels: torch.Tensor, **inputs: Any) -> FusedCausalLMOutput:
        logits = model(input_ids=input_ids).logits[:, :-1]  # padding is on the right: no token sees it
        counts = labels[:, 1:] != -100
        targets = labels[:, 1:].clamp(min=0)
        log_p = logits.log_softmax(-1)
        values = {
            "log_probs": log_p.gather(-1, targets[..., None])[..., 0],
            "entropy": -(log_p.exp() * log_p).sum(-1),
            "mean_logits": logits.mean(-1),
            "is_top1": (logits.argmax(-1) == targets),
        }
        return FusedCausalLMOutput(**{name: value * counts for name, value in values.items()})

    return forward
