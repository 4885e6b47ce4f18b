"""The model, the data and the training arguments that every trainer gets alike."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.peers.trainers import Record
from benchmarks.training.lengths import SHORT, Group, Lengths, Uniform, lengths_of
from benchmarks.training.texts import completions_of, records, word
from humanline_fused.training.data.plan import BatchPlan, BatchSizes

SPECIAL = ("<pad>", "<eos>", "<unk>")


@dataclass(frozen=True)
class Setting:
    """A model, and the data of its optimizer steps.

    Its rate moves the loss, and in two steps no token's log-ratio as far as a bound.
    """

    name: str
    architecture: str  # a name of transformers' AutoConfig
    sizes: dict[str, Any]  # of its config; the weights are random
    dtype: torch.dtype  # of the weights and the computation
    lengths: Lengths
    examples: int  # of one forward pass: pairs of DPO, else completions
    accumulation: int = 1  # forward passes of an optimizer step
    objective: str = "dpo"
    checkpointing: bool = False  # layers are computed again in backward, to save their activations
    learning_rate: float = 1e-5
    warm_up: int = 2  # steps before the first that is timed: the optimizer's state and a look-ahead's first scores
    short_warm_up: bool = False  # their sequences are short: a large step on a CPU needs none of its own size

    def working_on(self, objective: str, lengths: Lengths) -> "Setting":
        """Return this model on other data: 32 completions, in 4 forward passes or one for each of two large groups."""
        group = 2 if objective == "dpo" else self.per_record(objective, lengths)
        completions = group * math.ceil(8 / group)
        examples, accumulation = completions // (2 if objective == "dpo" else 1), max(1, 32 // completions)
        return replace(
            self,
            name=f"{self.name} {objective} {lengths.name}",
            lengths=lengths,
            examples=examples,
            accumulation=accumulation,
            objective=objective,
            **({"warm_up": 1, "short_warm_up": True} if self.dtype == torch.float32 else {}),
        )

    @staticmethod
    def per_record(objective: str, lengths: Lengths) -> int:
        """Return the examples that a record gives: a group of GRPO is one record."""
        return lengths.group if objective == "grpo" else 1

    @property
    def V(self) -> int:
        return self.sizes["vocab_size"]

    def model(self, device: torch.device) -> PreTrainedModel:
        """The same weights in every process."""
        config = AutoConfig.for_model(self.architecture, pad_token_id=0, eos_token_id=1, **self.sizes)
        config.max_position_embeddings = max(config.max_position_embeddings, self.lengths.longest)
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
        """Records for so many steps, each met once, in the dataset's order.

        The last step, which a look-ahead scores and nobody trains on, has the lengths of the first that is timed, which
        it scored before: everybody then computes the same in the timed steps.
        """
        per_record = self.per_record(self.objective, self.lengths)
        count = self.examples * self.accumulation * steps // per_record
        completions = 2 if self.objective == "dpo" else per_record
        groups, dealt = self.lengths.draw(count, completions), self.dealt(count)
        for last, timed in zip(dealt[-1], dealt[self.warm_up], strict=True):
            groups[last] = groups[timed]
        if self.short_warm_up:
            for index in itertools.chain(*dealt[: self.warm_up]):
                groups[index] = Group(SHORT, (SHORT,) * completions)
        places = {index: place for step in dealt for place, index in enumerate(step)}
        return records(groups, self.objective, self.V, places)

    def dealt(self, count: int) -> list[list[int]]:
        """The records of every optimizer step, as HumanlineTrainer's plan deals them."""
        per_step = self.examples * self.accumulation // self.per_record(self.objective, self.lengths)
        plan = BatchPlan(count, BatchSizes(per_step), seed=0)
        return [list(plan.examples(step)) for step in range(plan.steps_per_epoch)]

    def steps_of(self, records: Sequence[Record]) -> list[list[Record]]:
        return [[records[index] for index in step] for step in self.dealt(len(records))]

    def arguments(self, output_dir: str, steps: int, device: torch.device) -> dict[str, Any]:
        """Of transformers' ``TrainingArguments``, and of every trainer's own."""
        checkpointing = {"gradient_checkpointing": True} if self.checkpointing else {}
        return checkpointing | {
            "output_dir": output_dir,
            "per_device_train_batch_size": self.examples,
            "gradient_accumulation_steps": self.accumulation,
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
    """Prompt and completion of every sequence, with their end-of-sequence tokens; no padding."""
    return sum(
        len(record["prompt"].split()) + len(completion.split()) + 1
        for record in step
        for completion in completions_of(record)
    )


SIZES = "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"


def _sizes(*sizes: int) -> dict[str, Any]:
    return dict(zip(SIZES, sizes, strict=True))


TOY = Setting("toy", "llama", _sizes(100, 32, 48, 2, 2), torch.float32, Uniform(32), examples=2, learning_rate=3e-3)

SETTINGS = {
    setting.name: setting
    for setting in (
        TOY,
        Setting("cpu", "llama", _sizes(32000, 768, 2048, 8, 12), torch.float32, Uniform(64), examples=2),
        Setting(  # Qwen2.5-1.5B
            "1.5b",
            "qwen2",
            {**_sizes(151936, 1536, 8960, 28, 12), "num_key_value_heads": 2, "tie_word_embeddings": True},
            torch.bfloat16,
            Uniform(1024, shortest=1.0),
            examples=8,
            checkpointing=True,
            learning_rate=1e-4,  # a smaller one is less than half a unit in the last place of most weights
        ),
    )
}


class Work(NamedTuple):
    """The setting of a run, by names."""

    model: str
    objective: str = "dpo"
    lengths: str = ""  # the model's own where it is empty

    @property
    def setting(self) -> Setting:
        setting = SETTINGS[self.model]
        return setting.working_on(self.objective, lengths_of(self.lengths)) if self.lengths else setting


DOCUMENTED = (
    Work("cpu", "dpo", "ultrafeedback"),
    Work("cpu", "grpo", "math8"),
    Work("cpu", "grpo", "math16"),
    Work("cpu", "kto", "ultrafeedback"),
    Work("cpu", "dpo", "equal"),
)
"""The works of the table of docs/performance.md."""
