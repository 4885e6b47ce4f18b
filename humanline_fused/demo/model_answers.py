"""Sampling at temperature 1, for the held-out reward and for preference pairs."""

from collections.abc import Iterator, Sequence

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from humanline_fused.demo import task

MAX_NEW_TOKENS = 12


@torch.no_grad()
def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], seed: int) -> list[str]:
    """Sample one answer per prompt, in order, determined by ``seed``. torch's global generator does not change."""
    inputs = tokenizer(list(prompts), padding=True, return_tensors="pt", return_token_type_ids=False).to(model.device)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ids = model.generate(  # pyright: ignore[reportCallIssue]
            **inputs, do_sample=True, top_k=0, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=tokenizer.pad_token_id
        )
    model.train(was_training)
    return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def mean_reward(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], seed: int) -> float:
    """Return the share of prompts with a right answer."""
    return sum(map(task.reward, prompts, sample(model, tokenizer, prompts, seed))) / len(prompts)


def preference_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    seed: int,
    *,
    samples: int = 4,
    batch_size: int = 256,
) -> Iterator[dict[str, str]]:
    """Yield the best and the worst of ``samples`` answers per prompt if their rewards differ (the paper's recipe)."""
    for start in tqdm(range(0, len(prompts), batch_size), desc="sampling preference pairs", unit="batch"):
        batch = prompts[start : start + batch_size]
        drawn = [sample(model, tokenizer, batch, seed + start * samples + i) for i in range(samples)]
        for prompt, *answers in zip(batch, *drawn, strict=True):
            ranked = sorted(answers, key=lambda completion, prompt=prompt: task.reward(prompt, completion))
            if task.reward(prompt, ranked[0]) < task.reward(prompt, ranked[-1]):
                yield {"prompt": prompt, "chosen": ranked[-1], "rejected": ranked[0]}
