"""The model, the data and the training arguments that every trainer gets alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.batches import random_pairs, word
from benchmarks.peers.trainers import Record
from humanline_fused.training.data.plan import BatchPlan, BatchSizes

SPECIAL = ("<pad>", "<eos>", "<unk>")


@dataclass(frozen=True)
class Setting:
    """One size of model and batch. Its rate moves the loss, and in two steps no token's log-ratio as far as a bound."""

    name: str
    architecture: str  # a name of transformers' AutoConfig
    sizes: dict[str, Any]  # of its config; the weights are random
    dtype: torch.dtype  # of the weights and the computation
    pairs: int  # of one optimizer step, which is one forward pass of 2 * pairs sequences
    T: int  # tokens of the longest sequence
    shortest: float = 0.5  # tokens of the shortest sequence, as a share of T
    checkpointing: bool = False  # layers are computed again in backward, to save their activations
    learning_rate: float = 1e-5

    @property
    def V(self) -> int:
        return self.sizes["vocab_size"]

    def model(self, device: torch.device) -> PreTrainedModel:
        """The same weights in every process."""
        config = AutoConfig.for_model(self.architecture, pad_token_id=0, eos_token_id=1, **self.sizes)
        torch.manual_seed(0)
        with device:
            return AutoModelForCausalLM.from_config(config, dtype=self.dtype)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A token for every word; words stand apart by spaces."""
        words = [*SPECIAL, *map(word, range(len(SPECIAL), self.V))]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
        )

    def records(self, steps: int) -> list[Record]:
        """Pairs for so many steps, each met once."""
        return random_pairs(self.pairs * steps, self.T, self.V, self.shortest)

    def steps_of(self, records: Sequence[Record]) -> list[list[Record]]:
        """The pairs of every optimizer step, as HumanlineTrainer's plan deals them."""
        plan = BatchPlan(len(records), BatchSizes(self.pairs), seed=0)
        windows = map(plan.global_window, range(plan.steps_per_epoch))
        return [[records[i] for ids in window for i in ids] for window in windows]

    def arguments(self, output_dir: str, steps: int, device: torch.device) -> dict[str, Any]:
        """Of transformers' ``TrainingArguments``, and of every trainer's own."""
        checkpointing = {"gradient_checkpointing": True} if self.checkpointing else {}
        return checkpointing | {
            "output_dir": output_dir,
            "per_device_train_batch_size": self.pairs,
            "max_steps": steps,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.01,
            "bf16": self.dtype == torch.bfloat16,
            "seed": 0,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": device.type == "cpu",
        }


def tokens_of(step: Sequence[Record]) -> int:
    """Prompt and completion of both sequences of every pair, with their end-of-sequence tokens; no padding."""
    words = [len(record[name].split()) for record in step for name in ("prompt", "prompt", "chosen", "rejected")]
    return sum(words) + 2 * len(step)


SIZES = "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"


def _sizes(*sizes: int) -> dict[str, Any]:
    return dict(zip(SIZES, sizes, strict=True))


TOY = Setting("toy", "llama", _sizes(100, 32, 48, 2, 2), torch.float32, pairs=2, T=32, learning_rate=3e-3)

SETTINGS = {
    setting.name: setting
    for setting in (
        TOY,
        Setting("cpu", "llama", _sizes(32000, 768, 2048, 8, 12), torch.float32, pairs=2, T=64),
        Setting(  # Qwen2.5-1.5B
            "1.5b",
            "qwen2",
            {**_sizes(151936, 1536, 8960, 28, 12), "num_key_value_heads": 2, "tie_word_embeddings": True},
            torch.bfloat16,
            pairs=8,
            T=1024,
            shortest=1.0,
            checkpointing=True,
            learning_rate=1e-4,  # a smaller one is less than half a unit in the last place of most weights
        ),
    )
}
