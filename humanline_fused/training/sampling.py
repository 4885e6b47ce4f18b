"""Samples of the policy: ``model.generate`` from its own distribution, as token ids."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        num_generations: of each prompt.
        max_completion_length: tokens of a completion, its end-of-sequence token among them.
        max_length: tokens of prompt and completion; a completion is cut there.
        temperature, top_p: of the distribution; 1 and 1 are the policy's own, the one that the loss sees.
        batch_size: prompts at once.
        pad_token_id: of what stands beside shorter prompts.
    """

    num_generations: int
    max_completion_length: int
    max_length: int
    temperature: float
    top_p: float
    batch_size: int
    pad_token_id: int


def generation_config(model: PreTrainedModel, sampling: Sampling) -> GenerationConfig:
    """The model's own, which knows how a text ends, without what would bend its distribution (Qwen2.5's repetition
    penalty, Llama's top_p)."""
    config = copy.deepcopy(model.generation_config)
    assert config is not None
    config.update(
        do_sample=True,
        num_beams=1,
        num_return_sequences=sampling.num_generations,
        max_new_tokens=sampling.max_completion_length,
        max_length=None,
        min_new_tokens=None,
        min_length=0,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        min_p=None,
        typical_p=1.0,
        epsilon_cutoff=0.0,
        eta_cutoff=0.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        bad_words_ids=None,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
        exponential_decay_length_penalty=None,
        sequence_bias=None,
        guidance_scale=None,
        pad_token_id=sampling.pad_token_id,
        use_cache=True,
        return_dict_in_generate=False,
        output_scores=False,
        output_logits=False,
    )
    return config


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Those of the tokenizer and of the model, which for a chat model are not always the same."""
    config = model.generation_config
    known = (tokenizer.eos_token_id, config.eos_token_id if config else None)
    return {int(end) for ends in known if ends is not None for end in (ends if isinstance(ends, list) else [ends])}


def left_padded(prompts: Sequence[Tensor], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 [len(prompts), longest].

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


@torch.no_grad()
def sample(
    model: PreTrainedModel, prompts: Sequence[Tensor], sampling: Sampling, ends: set[int], seed: int
) -> list[list[Tensor]]:
    """Draw ``num_generations`` completions of every prompt.

    Args:
        model: on one device; its training mode is as before afterwards.
        prompts: token ids, at least one each.
        ends: tokens that end a completion.
        seed: the same prompts and the same weights give the same samples; torch's own generators are left alone.

    Returns:
        int32 token ids by prompt and sample: up to the first end-of-sequence token, with it.
    """
    config = generation_config(model, sampling)
    config.eos_token_id = sorted(ends) or None
    device, was_training = model.device, model.training
    completions: list[list[Tensor]] = []
    model.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for start in range(0, len(prompts), sampling.batch_size):
                batch = prompts[start : start + sampling.batch_size]
                ids, mask = left_padded(batch, sampling.pad_token_id)
                drawn = model.generate(  # pyright: ignore[reportCallIssue]
                    input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
                )
                rows = drawn[:, ids.shape[1] :].to("cpu", torch.int32).unflatten(0, (len(batch), -1))
                for prompt, samples in zip(batch, rows, strict=True):
                    room = sampling.max_length - len(prompt)
                    completions.append([_until_end(row, ends)[:room] for row in samples])
    finally:
        model.train(was_training)
    return completions


def _until_end(row: Tensor, ends: set[int]) -> Tensor:
    """Its tokens up to the first that ends it; what ``generate`` put behind is padding."""
    found = torch.isin(row, torch.tensor(sorted(ends), dtype=row.dtype)).nonzero()
    return row[: int(found[0]) + 1].clone() if len(found) else row
