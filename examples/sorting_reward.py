"""Reward function for online rounds: 1 if the completion equals the dataset's ``answer``, else 0."""

from collections.abc import Sequence
from typing import Any


def reward(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: Any) -> list[float]:
    """Return 1 for each completion that equals the answer of its prompt, else 0.

    Args:
        prompts, completions: one of each per sample.
        answer: the dataset's column ``answer``, repeated for every sample of a prompt.
        columns: the other columns of the dataset.

    >>> reward(prompts=["sort cab: ", "sort cab: "], completions=["abc", "cba"], answer=["abc", "abc"])
    [1.0, 0.0]
    """
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]
