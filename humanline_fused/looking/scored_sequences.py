"""Scored sequences for a page: text, log-ratio and clamped log-ratio of each token, and the reward."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from humanline_fused.eager.log_ratio import clamped_log_ratio
from humanline_fused.functional.arguments import bounds_of
from humanline_fused.looking.token_scores import Compared
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.examples import Example
from humanline_fused.training.objectives.objective import Objective

CONTEXT = 8
"""Number of preceding tokens that may affect a token's text (a space, part of a character)."""

UNKNOWN = "\ufffd"
"""Replacement character, the decoded text of an incomplete character."""


@dataclass(frozen=True, eq=False)
class ScoredSequence:
    """A prompt with one completion.

    Attributes:
        example: index into the training data.
        role: display name: chosen or rejected, desirable or undesirable, or the advantage.
        ids: ids of all tokens.
        texts: texts of all tokens; joined they are the whole text.
        positions: indices of the n tokens that count.
        logp, ref_logp: [n], nats.
        log_ratio, clamped: [n], nats: before and after the clamp.
        low, high: [n], bool: True below and above the bounds.
        reward: β · Σ clamped; None for an objective without an implicit reward.
    """

    example: int
    role: str
    ids: list[int]
    texts: list[str]
    positions: list[int]
    logp: Tensor
    ref_logp: Tensor
    log_ratio: Tensor
    clamped: Tensor
    low: Tensor
    high: Tensor
    reward: float | None


def sequences_of(
    examples: Sequence[Example],
    ids: Sequence[int],
    compared: Compared,
    config: HumanlineConfig,
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[ScoredSequence]:
    """Yield the sequences of the examples ``ids``, in their order."""
    bounds = bounds_of(config.humanline_clamp)
    for i in ids:
        example = examples[i]
        sides = zip(example.sides, compared.policy[i]["ref_logp"], compared.reference[i]["ref_logp"], strict=True)
        for side, ((completion, mask), *scores) in enumerate(sides):
            tokens = torch.cat([example.prompt_ids, completion])[: config.max_length].tolist()
            start = len(example.prompt_ids)
            counts = range(max(start, 1), len(tokens))
            positions = [at for at in counts if mask is None or mask[at - start]]
            logp, ref_logp = (score.float() for score in scores)
            ratio = clamped_log_ratio(logp, ref_logp, torch.ones_like(logp, dtype=torch.bool), **bounds)
            total = float(ratio.clamped.sum())
            yield ScoredSequence(
                example=i,
                role=objective.role(side, example.weight),
                ids=tokens,
                texts=texts_of(tokenizer, tokens),
                positions=positions,
                logp=logp,
                ref_logp=ref_logp,
                log_ratio=ratio.raw,
                clamped=ratio.clamped,
                low=ratio.raw < bounds["log_epsilon_P"],
                high=ratio.raw > bounds["log_epsilon_R"],
                reward=(config.beta or 0.0) * total if objective.has_implicit_reward else None,
            )


def texts_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds to the preceding ones, or its name in the vocabulary if it adds none."""

    def decode(start: int, stop: int) -> str:
        options: Mapping[str, bool] = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return tokenizer.decode(list(ids[start:stop]), **options)

    texts = []
    for i, token in enumerate(ids):
        start = max(0, i - CONTEXT)
        before, whole = decode(start, i).rstrip(UNKNOWN), decode(start, i + 1)
        added = whole.removeprefix(before) if whole.startswith(before) else ""
        texts.append(added or str(tokenizer.convert_ids_to_tokens(token)))
    return texts
