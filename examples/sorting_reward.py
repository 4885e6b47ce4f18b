"""A reward function for online rounds: right or wrong, told by the data's own ``answer``."""

from collections.abc import Sequence
from typing import Any


def reward(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: Any) -> list[float]:
    """1 for each completion that is its prompt's answer, else 0.

    Args:
        prompts, completions: one of each per sample.
        answer: the dataset's column of that name, repeated for every sample of a prompt.
        columns: the dataset's other columns.

    >>> reward(prompts=["sort cab: ", "sort cab: "], completions=["abc", "cba"], answer=["abc", "abc"])
    [1.0, 0.0]
    """
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]
