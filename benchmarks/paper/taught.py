"""A model for word problems where nothing can be downloaded: a Llama from a config, taught worked solutions."""

import random
import string

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.paper.problems import final_number, make_problems

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
RIGHT = 0.4
"""Share of right solutions. The others stop after the first step, so that the reward selects between two habits."""


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per printable ASCII character."""
    characters = [*SPECIAL_TOKENS, *sorted(set(string.printable) - set(string.whitespace)), " "]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(characters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    special = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, clean_up_tokenization_spaces=False)


def first_step(answer: str) -> str:
    """Return a wrong solution: the first step of the right one.

    >>> first_step("2 + 3 = 5, 5 - 1 = 4 #### 4")
    '2 + 3 = 5 #### 5'
    """
    first = answer.split(",")[0]
    return f"{first} #### {final_number(first)}"


def solution(answer: str, rng: random.Random) -> str:
    """Return the right solution, or its first step alone."""
    return answer if rng.random() < RIGHT else first_step(answer)


def taught_model(
    hidden: int, layers: int, steps: int, device: torch.device, *, batch_size: int = 64, learning_rate: float = 1e-3
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Return the model and its tokenizer.

    Args:
        hidden, layers: width, a multiple of 8, and depth.
        steps: supervised steps, each of ``batch_size`` new problems.
    """
    torch.manual_seed(0)
    rng, tokenizer = random.Random(0), character_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 4,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=SPECIAL_TOKENS.index("<pad>"),
            bos_token_id=None,
            eos_token_id=SPECIAL_TOKENS.index("<eos>"),
        )
    )
    model.to(device)  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, 10 * (s + 1) / steps) * (1 - s / steps))
    for _ in range(steps):
        pairs = [(plain_prompt(p["question"]), solution(p["answer"], rng)) for p in make_problems(batch_size, rng)]
        inputs = tokenizer([f"{prompt}{answer}<eos>" for prompt, answer in pairs], padding=True, return_tensors="pt")
        ids = inputs["input_ids"].to(device)
        width = torch.tensor([len(prompt) for prompt, _ in pairs], device=device)[:, None]
        place = torch.arange(ids.shape[1], device=device)
        target = ids.masked_fill((place < width) | (ids == tokenizer.pad_token_id), -100)
        logits = model(input_ids=ids, attention_mask=inputs["attention_mask"].to(device)).logits
        cross_entropy(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


def plain_prompt(question: str) -> str:
    """Return a problem as text, for a model without a chat template."""
    return f"Question: {question} Answer: "
