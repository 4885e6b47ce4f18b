"""A Llama of one layer with a vocabulary of 100 words, and preference data for it."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from humanline_fused.training import HumanlineConfig, HumanlineTrainer

WORDS = [f"w{i}" for i in range(94)]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of words separated by spaces, with a chat template."""
    vocabulary = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<system>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", "<system>"],
        chat_template=CHAT_TEMPLATE,
    )


def tiny_model(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """Return a Llama with vocabulary 100, hidden size 32 and one layer."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "vocab_size": 100,
    }
    config = LlamaConfig(pad_token_id=0, eos_token_id=1, **sizes | overrides)
    return LlamaForCausalLM(config)


def _words(generator: torch.Generator, low: int, high: int) -> str:
    length = int(torch.randint(low, high, (1,), generator=generator))
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist())


def records(objective: str, number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return random data in the columns of the objective, with completions of several lengths."""
    g = torch.Generator().manual_seed(seed)

    def text() -> str:
        return " " + _words(g, 1, 7)

    match objective:
        case "dpo":
            return [{"prompt": _words(g, 2, 6), "chosen": text(), "rejected": text()} for _ in range(number)]
        case "kto":
            return [{"prompt": _words(g, 2, 6), "completion": text(), "label": i % 3 > 0} for i in range(number)]
        case _:
            rows = [{"prompt": _words(g, 2, 6), "completions": [text(), text()]} for _ in range(number // 2)]
            return [row | {"rewards": [float(i % 2), 0.25 * (i % 3) - 0.5]} for i, row in enumerate(rows)]


def tiny_config(output_dir: Path | str, **settings: Any) -> HumanlineConfig:
    """Return the config of six steps in just over two epochs; from the second step the reference affects the loss."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "max_steps": 6,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "max_length": 32,
        "beta": 0.5,
    }
    return HumanlineConfig(output_dir=str(output_dir), **defaults | settings)


def tiny_trainer(output_dir: Path | str, num_examples: int = 10, **settings: Any) -> HumanlineTrainer:
    """Return a trainer for a new tiny model on :func:`records`."""
    given = {
        name: settings.pop(name)
        for name in ("model", "train_dataset", "eval_dataset", "reference_model", "callbacks")
        if name in settings
    }
    config = tiny_config(output_dir, **settings)
    given.setdefault("model", tiny_model())
    given.setdefault("train_dataset", records(config.objective, num_examples))
    return HumanlineTrainer(args=config, processing_class=tiny_tokenizer(), **given)


def trained(output_dir: Path | str, **settings: Any) -> HumanlineTrainer:
    """Return a :func:`tiny_trainer` after training."""
    trainer = tiny_trainer(output_dir, **settings)
    trainer.train()
    return trainer


def losses(trainer: HumanlineTrainer) -> list[float]:
    """Return the logged training losses, in order."""
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]
