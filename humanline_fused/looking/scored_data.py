"""Scores of a dataset's sequences under a model, and under the one that wrote the data or is the reference."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from humanline_fused.model.fused_head import score_in_forward_
from humanline_fused.printing import one_line
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.batch import Batch, collate
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.plan import micro_batch
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.run.untrue_warnings import without_untrue_warnings
from humanline_fused.training.scoring import Scorer
from humanline_fused.training.start import loading, pad_token_id_of


@dataclass(frozen=True)
class ScoredData:
    """Scores of S sequences, one tensor [n] of each over its tokens that count, float32, nats, on the CPU.

    Attributes:
        logp, entropy: under the model.
        other_logp: under the other model; None without one.
    """

    logp: list[Tensor]
    entropy: list[Tensor]
    other_logp: list[Tensor] | None = None

    @property
    def tokens(self) -> Tensor:
        """Log-probs of all tokens, [N]."""
        return torch.cat(self.logp)

    @property
    def surplus(self) -> list[Tensor]:
        """``−log π − H(π)`` of each token, by sequence."""
        return [-logp - entropy for logp, entropy in zip(self.logp, self.entropy, strict=True)]

    @property
    def log_ratio(self) -> list[Tensor]:
        """``log π_model − log π_other`` of each token, by sequence.

        Raises:
            ValueError: the data were not scored by another model.
        """
        if self.other_logp is None:
            raise ValueError(
                "expected the data's log-probs under the model that wrote them or under a reference, got none"
            )
        return [logp - other for logp, other in zip(self.logp, self.other_logp, strict=True)]

    @property
    def log_weights(self) -> Tensor:
        """Log importance weight of each sequence, [S], nats."""
        return torch.stack([ratio.double().sum() for ratio in self.log_ratio])


def evenly(number: int, limit: int) -> list[int]:
    """Return at most ``limit`` of the indices below ``number``, evenly spaced.

    >>> evenly(10, 4), evenly(3, 4)
    ([0, 2, 5, 7], [0, 1, 2])
    """
    count = min(number, limit)
    return [place * number // count for place in range(count)]


class DataScorer:
    """Scores chosen examples of a dataset with several models, in the same batches.

    Args:
        config, objective: as of a run on the data.
        examples: the dataset.
        chosen: indices of the examples to score.
        device: where to compute.
        batch_size: examples of a forward pass.
    """

    def __init__(
        self,
        config: HumanlineConfig,
        objective: Objective,
        examples: Sequence[Example],
        chosen: Sequence[int],
        device: torch.device,
        batch_size: int,
    ) -> None:
        self.config, self.objective, self.examples = config, objective, examples
        self.scorer, self.device = Scorer(config, objective), device
        longest = {i: max(map(len, examples[i].completions)) + len(examples[i].prompt_ids) for i in chosen}
        ordered = sorted(chosen, key=longest.__getitem__)
        self.groups = [tuple(ordered[at : at + batch_size]) for at in range(0, len(ordered), batch_size)]

    def score(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        scope: AbstractContextManager[Any] | None = None,
        progress: str | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return log-probs and entropies of each sequence with a token that counts.

        Args:
            model: a transformers or PEFT model; moved to the device.
            tokenizer: gives the padding id.
            scope: entered while scoring, such as a disabled adapter.
            progress: label of a progress bar.
        """
        if self.config.head == "fused":
            score_in_forward_(model)
        model.to(self.device).eval()
        logps, entropies = [], []
        bar = tqdm(self._batches(pad_token_id_of(tokenizer, model)), progress, len(self.groups), disable=not progress)
        with scope or nullcontext(), without_untrue_warnings():
            for batch in bar:
                (scores,) = self.scorer.score(model, [batch], with_entropy=True)
                lengths = batch.cu_seqlens.diff().tolist()
                for into, name in ((logps, "ref_logp"), (entropies, "ref_entropy")):
                    into += [values for values in scores[name][0].float().cpu().split(lengths) if len(values)]
        return logps, entropies

    def _batches(self, pad_token_id: int) -> Iterator[Batch]:
        sizes: dict[str, Any] = {"pad_token_id": pad_token_id, "max_length": self.config.max_length}
        for ids in self.groups:
            batch = collate(self.examples, micro_batch(ids, 0, len(ids)), self.objective, **sizes)
            yield batch.alone.to(self.device)


def check_same_tokens(model: str, mine: PreTrainedTokenizerBase, other: str, setting: str) -> None:
    """Raise ValueError unless the tokenizer in ``other`` gives every token the id that the model's gives it.

    Args:
        model, mine: the model's name and its tokenizer.
        other: folder or name of the other model.
        setting: the option that named it, for the message.
    """
    try:
        with loading("tokenizer", other):
            theirs = AutoTokenizer.from_pretrained(other)
    except (OSError, ValueError) as error:
        compared = f"its tokens are compared with those of {model}"
        raise ValueError(f"{setting}: {one_line(error)} ({compared})") from error
    ids, other_ids = mine.get_vocab(), theirs.get_vocab()
    if ids != other_ids:
        token = min(t for t in ids.keys() | other_ids.keys() if ids.get(t) != other_ids.get(t))
        raise ValueError(
            f"{setting}: expected a model with the tokenizer of {model}, got another one: token {token!r} has id "
            f"{ids.get(token)} in {model} and {other_ids.get(token)} in {other}, so log-probs of the same text "
            "cannot be compared token by token"
        )
