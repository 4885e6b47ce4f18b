"""Answers from a model: greedy ones to judge it by, sampled ones to make preference pairs of."""

from collections.abc import Iterator, Sequence

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from humanline_fused.demo import task


@torch.no_grad()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *, sample: bool
) -> list[str]:
    """One answer per prompt, in order: the likeliest tokens, or with ``sample`` a draw at temperature 1."""
    inputs = tokenizer(list(prompts), padding=True, return_tensors="pt", return_token_type_ids=False)
    was_training = model.training
    model.eval()
    ids = model.generate(
        **inputs.to(model.device),
        do_sample=sample,
        **({"top_k": 0} if sample else {}),
        max_new_tokens=16,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.train(was_training)
    return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def mean_reward(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> float:
    """The mean reward of greedy answers, in [0, 1]."""
    answers = generate(model, tokenizer, prompts, sample=False)
    return sum(map(task.reward, prompts, answers)) / len(prompts)


def preference_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    samples: int = 8,
    batch_size: int = 256,
) -> Iterator[dict[str, str]]:
    """The best and the worst of ``samples`` answers to a prompt, where those differ in reward (the paper's recipe)."""
    for start in tqdm(range(0, len(prompts), batch_size), desc="sampling preference pairs", unit="batch"):
        batch = prompts[start : start + batch_size]
        drawn = [generate(model, tokenizer, batch, sample=True) for _ in range(samples)]
        for prompt, *answers in zip(batch, *drawn, strict=True):
            ranked = sorted(answers, key=lambda completion, prompt=prompt: task.reward(prompt, completion))
            if task.reward(prompt, ranked[0]) < task.reward(prompt, ranked[-1]):
                yield {"prompt": prompt, "chosen": ranked[-1], "rejected": ranked[0]}
