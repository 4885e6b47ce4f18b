"""Start model of the demo, the examples and `humanline init`: a character tokenizer and a small, fine-tuned Llama."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from humanline_fused.demo import task

SPECIAL_TOKENS = ["<pad>", "<eos>", "<unk>"]

CHAT_TEMPLATE = (
    "{% set last = namespace(user=0) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages[last.user:] %}"
    "{{ m['content'].strip() + ' ' if m['role'] == 'user' else m['content'] + eos_token }}"
    "{% endfor %}"
)
"""Chat template for a model that knows one turn: the user's last one, with the space that ends a prompt.

Messages and text of the examples give the same tokens.
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character, plus ``<pad>``, ``<eos>`` and ``<unk>``."""
    characters = sorted(set(task.LETTERS + "sort : "))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, *, hidden: int = 128, layers: int = 4
) -> LlamaForCausalLM:
    """Return a float32 Llama, initialised from ``seed``; with 0.8 million parameters at the default size."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=SPECIAL_TOKENS.index("<pad>"),
            bos_token_id=None,
            eos_token_id=SPECIAL_TOKENS.index("<eos>"),
        )
    )


def fine_tune(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    rng: random.Random,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
) -> None:
    """Fine-tune ``model`` with cross-entropy on demonstrations, which ``rng`` draws anew at each step.

    The learning rate warms up over the first tenth of the steps and falls linearly to zero.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 10 * (step + 1) / steps) * (1 - step / steps)
    )
    model.train()
    for step in tqdm(range(steps), desc="supervised fine-tuning", unit="step"):
        batch = [prompts[(step * batch_size + i) % len(prompts)] for i in range(batch_size)]
        texts = [f"{prompt}{task.demonstration(prompt, rng)}{tokenizer.eos_token}" for prompt in batch]
        inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        lengths = torch.tensor([len(task.answer(prompt)) + 1 for prompt in batch])
        ids = inputs["input_ids"]
        is_answer = torch.arange(ids.shape[1]) >= (ids.shape[1] - lengths)[:, None]
        logits = model(**inputs).logits
        loss = cross_entropy(logits[:, :-1][is_answer[:, 1:]], ids[:, 1:][is_answer[:, 1:]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()


def make_start(
    folder: Path,
    prompts: Sequence[str],
    rng: random.Random,
    *,
    seed: int,
    hidden: int = 128,
    layers: int = 4,
    **training: Any,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Make a model and its tokenizer, fine-tune it, and save both to ``folder``.

    Args:
        folder: as written by ``save_pretrained``.
        prompts, rng, training: as of :func:`fine_tune`.
        seed, hidden, layers: as of :func:`make_model`.
    """
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed, hidden=hidden, layers=layers)
    fine_tune(model, tokenizer, prompts, rng, **training)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer
