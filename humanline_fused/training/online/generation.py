"""Sampling of token ids from the policy's own distribution with ``model.generate``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from humanline_fused.model.fused_head import causal_lm
from humanline_fused.training.config import HumanlineConfig


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters.

    Attributes:
        num_generations: completions per prompt.
        max_completion_length: maximal tokens of a completion, including its end-of-sequence token.
        max_length: maximal tokens of prompt and completion.
        temperature, top_p: of the distribution; 1 and 1 give the policy's own, which the loss uses.
        batch_size: prompts per call of ``generate``.
        pad_token_id: padding to the left of shorter prompts.
    """

    num_generations: int
    max_completion_length: int
    max_length: int
    temperature: float
    top_p: float
    batch_size: int
    pad_token_id: int

    @classmethod
    def of(cls, config: HumanlineConfig, pad_token_id: int, *, num_generations: int) -> Self:
        """Return the sampling settings of a run, for ``num_generations`` completions of each prompt."""
        return cls(
            num_generations=num_generations,
            max_completion_length=config.max_completion_length,
            max_length=config.max_length,
            temperature=config.temperature,
            top_p=config.top_p,
            batch_size=max(1, config.rollout_batch_size // num_generations),
            pad_token_id=pad_token_id,
        )


@contextmanager
def sampled_from(model: PreTrainedModel, sampling: Sampling, ends: set[int]) -> Iterator[None]:
    """Make ``model.generate`` draw from the model's own distribution until exit.

    The generation config is replaced, not overridden, because ``generate`` reads every unspecified setting from it (a
    minimum length, suppressed tokens), and the settings of Qwen2.5's or Llama's config change the distribution.
    """
    plain = GenerationConfig(
        do_sample=True,
        num_return_sequences=sampling.num_generations,
        max_new_tokens=sampling.max_completion_length,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        pad_token_id=sampling.pad_token_id,
        eos_token_id=sorted(ends) or None,
        use_cache=True,
    )
    holders: tuple[Any, ...] = (model, causal_lm(model))  # PEFT's wrapper passes its own config on
    before = [holder.generation_config for holder in holders]
    try:
        for holder in holders:
            holder.generation_config = plain
        yield
    finally:
        for holder, own in zip(holders, before, strict=True):
            holder.generation_config = own


def end_tokens(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the end-of-sequence tokens of a tokenizer and of a model's generation config, which may differ."""
    known = (tokenizer.eos_token_id, config.eos_token_id if config else None)
    return {int(end) for ends in known if ends is not None for end in (ends if isinstance(ends, list) else [ends])}


def left_padded(prompts: Sequence[Tensor], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return left-padded token ids and attention mask, int64 [len(prompts), longest].

    >>> left_padded([torch.tensor([5]), torch.tensor([6, 7])], pad_token_id=0)
    (tensor([[0, 5],
            [6, 7]]), tensor([[0, 1],
            [1, 1]]))
    """
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_token_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def batches(prompts: Sequence[Tensor], sampling: Sampling) -> Iterator[tuple[list[Tensor], int]]:
    """Yield the prompts in order, in batches with room for the same number of new tokens.

    So no sequence is longer than ``max_length``, not even while it is drawn: a model with a table of positions could
    not compute it.

    >>> lengths = {"max_completion_length": 4, "max_length": 6}
    >>> sampling = Sampling(num_generations=2, **lengths, temperature=1, top_p=1, batch_size=2, pad_token_id=0)
    >>> [(list(map(len, batch)), room) for batch, room in batches([torch.ones(n) for n in (1, 2, 2, 5)], sampling)]
    [([1, 2], 4), ([2], 4), ([5], 1)]
    """
    for start in range(0, len(prompts), sampling.batch_size):
        batch = prompts[start : start + sampling.batch_size]
        for room, alike in groupby(batch, lambda p: min(sampling.max_completion_length, sampling.max_length - len(p))):
            yield list(alike), room


@torch.no_grad()
def sample(
    model: PreTrainedModel, prompts: Sequence[Tensor], sampling: Sampling, ends: set[int], seed: int
) -> list[list[Tensor]]:
    """Draw ``num_generations`` completions of every prompt.

    Args:
        model: on one device; its training mode is restored.
        prompts: token ids, at least one each.
        ends: tokens that end a completion.
        seed: with the same prompts and weights it gives the same samples; torch's global generators do not change.

    Returns:
        int32 token ids by prompt and sample, up to and including the first end-of-sequence token.
    """
    device, was_training = model.device, model.training
    completions: list[list[Tensor]] = []
    model.eval()
    try:
        with sampled_from(model, sampling, ends), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for batch, room in batches(prompts, sampling):
                ids, mask = left_padded(batch, sampling.pad_token_id)
                drawn = model.generate(  # pyright: ignore[reportCallIssue]
                    input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=room
                )
                rows = drawn[:, ids.shape[1] :].to("cpu", torch.int32).unflatten(0, (len(batch), -1))
                completions += [[_until_end(row, ends).clone() for row in samples] for samples in rows]
    finally:
        model.train(was_training)
    return completions


def _until_end(row: Tensor, ends: set[int]) -> Tensor:
    """Return the tokens up to and including the first end token; the rest is padding from ``generate``."""
    found = torch.isin(row, torch.tensor(sorted(ends), dtype=row.dtype)).nonzero()
    return row[: int(found[0]) + 1] if len(found) else row
