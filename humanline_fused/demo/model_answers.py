"""Sampling at temperature 1, preference pairs, and the expected reward on held-out prompts."""

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


@torch.no_grad()
def expected_reward(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> float:
    """Return the mean probability of the right answer, with its end: the expected reward, without sampling noise."""
    texts = [f"{prompt}{task.answer(prompt)}{tokenizer.eos_token}" for prompt in prompts]
    inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False).to(model.device)
    ids = inputs["input_ids"]
    lengths = torch.tensor([len(task.answer(prompt)) + 1 for prompt in prompts])
    is_answer = torch.arange(ids.shape[1]) >= (ids.shape[1] - lengths)[:, None]
    was_training = model.training
    logits = model.eval()(**inputs).logits
    model.train(was_training)
    logp = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return float(logp.where(is_answer[:, 1:].to(logp.device), 0.0).sum(-1).exp().mean())


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
