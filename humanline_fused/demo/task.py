"""Task of the demo: put letters in alphabetical order, with an exact reward.

The model is first fine-tuned on demonstrations: two of five are right, the others are in reverse order. So the model
can sort but does not know that ascending order is preferred; the preference pairs teach it.

>>> answer("sort bead: "), reward("sort bead: ", "abde"), reward("sort bead: ", "edba")
('abde', 1.0, 0.0)
"""

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijkl"
RIGHT_DEMONSTRATIONS = 0.4
"""Share of right demonstrations."""


def make_prompts(count: int, rng: random.Random, lengths: tuple[int, int] = (5, 8)) -> list[str]:
    """Return ``count`` different prompts, each with ``lengths[0]`` to ``lengths[1]`` letters."""
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        prompts[f"sort {''.join(rng.choices(LETTERS, k=rng.randint(*lengths)))}: "] = None
    return list(prompts)


def answer(prompt: str) -> str:
    """Return the right answer to ``prompt``.

    Raises:
        ValueError: ``prompt`` does not belong to this task.
    """
    match = re.fullmatch(r"sort (\w+): ", prompt)
    if match is None:
        raise ValueError(f"expected a prompt like 'sort bead: ', got {prompt!r}")
    return "".join(sorted(match[1]))


def demonstration(prompt: str, rng: random.Random) -> str:
    """Return a completion for supervised fine-tuning: the right answer or its reverse."""
    right = answer(prompt)
    return right if rng.random() < RIGHT_DEMONSTRATIONS else right[::-1]


def reward(prompt: str, completion: str) -> float:
    """Return 1 for the right answer, else 0."""
    return float(completion == answer(prompt))


def rewards(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """Return the :func:`reward` of each completion: the reward function of a run.

    >>> rewards(prompts=["sort ba: ", "sort ba: "], completions=["ab", "ba"])
    [1.0, 0.0]
    """
    return [reward(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
