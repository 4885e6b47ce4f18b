"""Completions of a dataset's prompts, drawn from the policy and scored by the reward function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from humanline_fused.training.data.prompts import PreparedPrompts
from humanline_fused.training.data.rows.records import Text
from humanline_fused.training.online.generation import Sampling, end_tokens, sample
from humanline_fused.training.online.reward import RewardFunction, RolloutError

T = TypeVar("T")


class Sampler:
    """Draws completions of prompts and scores them.

    Args:
        prompts: the prompts, with their columns for the reward function.
        sampling: the sampling settings.
        reward: the reward function.
        tokenizer: decodes token ids.
    """

    def __init__(
        self, prompts: PreparedPrompts, sampling: Sampling, reward: RewardFunction, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.prompts, self.sampling, self.reward, self.tokenizer = prompts, sampling, reward, tokenizer
        self.ends: set[int] = set()

    def draw(self, places: Sequence[int], model: PreTrainedModel, seed: int) -> list[list[Tensor]]:
        """Return completions of the prompts at ``places``, the same with the same ``seed``, prompts and weights."""
        ids = [self.prompts.examples[place].prompt_ids for place in places]
        self.ends = end_tokens(model.generation_config, self.tokenizer)
        return sample(model, ids, self.sampling, self.ends, seed)

    def score(self, places: Sequence[int], drawn: Sequence[Sequence[Tensor]]) -> list[list[tuple[Text, float]]]:
        """Return the text and the reward of each completion, by prompt.

        Raises:
            RolloutError: the reward function failed.
        """
        flat = [(place, ids) for place, group in zip(places, drawn, strict=True) for ids in group]
        prompts = [self.prompts.texts[place] for place, _ in flat]
        completions = [self._as_text(prompt, ids) for prompt, (_, ids) in zip(prompts, flat, strict=True)]
        columns = {name: [self.prompts.columns[place][name] for place, _ in flat] for name in self.prompts.columns[0]}
        rewards = self.reward(prompts, completions, columns) if flat else []
        scored = iter(zip(completions, rewards, strict=True))
        return [[next(scored) for _ in group] for group in drawn]

    def is_cut(self, completion: Tensor) -> bool:
        """Return True for the token ids of a drawn completion that stops before its end."""
        return int(completion[-1]) not in self.ends

    def _as_text(self, prompt: Text, ids: Tensor) -> Text:
        text = str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))
        return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


@dataclass(frozen=True)
class Failure:
    """An error of one process, which all processes raise.

    Attributes:
        text: for the user.
        error: the exception, on its own process alone: it may be one that cannot be sent to the others.
    """

    text: str
    error: Exception | None = None

    def __reduce__(self) -> tuple[type["Failure"], tuple[str]]:
        return Failure, (self.text,)


def attempted(work: Callable[[], T], what: str) -> T | Failure:
    """Return the result of ``work``, or its failure, for :func:`gathered`; ``what`` names the work in the text."""
    try:
        return work()
    except RolloutError as error:
        return Failure(str(error), error)
    except Exception as error:
        return Failure(f"{what} failed: {type(error).__name__}: {error}", error)


def gathered(outcome: T | Failure) -> list[T]:
    """Return the results of all processes, in the order of their ranks. Collective.

    Raises:
        RolloutError: on every process, so that none waits forever, if one of them failed; on that one from its error.
    """
    outcomes: list[T | Failure] = gather_object([outcome])
    for given in outcomes:
        if isinstance(given, Failure):
            raise RolloutError(given.text) from (outcome.error if isinstance(outcome, Failure) else None)
    return [given for given in outcomes if not isinstance(given, Failure)]
