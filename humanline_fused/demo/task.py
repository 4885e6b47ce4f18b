"""The demo's task: put the letters in alphabetical order. Easy to state, and checked exactly.

The demonstrations that the model first learns from are right in two cases of five; in the others the letters come in
reverse order. So the model knows how to sort, and does not know that forwards is what is wanted: preferences tell it.

>>> answer("sort bead: "), reward("sort bead: ", "abde"), reward("sort bead: ", "edba")
('abde', 1.0, 0.0)
"""

import json
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

LETTERS = "abcdefghijkl"
RIGHT_DEMONSTRATIONS = 0.4
"""Share of the demonstrations that are right."""


def make_prompts(count: int, rng: random.Random, lengths: tuple[int, int] = (5, 8)) -> list[str]:
    """``count`` different prompts, each with between ``lengths[0]`` and ``lengths[1]`` letters."""
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        prompts[f"sort {''.join(rng.choices(LETTERS, k=rng.randint(*lengths)))}: "] = None
    return list(prompts)


def answer(prompt: str) -> str:
    """The right answer to ``prompt``.

    Raises:
        ValueError: ``prompt`` is not one of this task.
    """
    match = re.fullmatch(r"sort (\w+): ", prompt)
    if match is None:
        raise ValueError(f"expected a prompt like 'sort bead: ', got {prompt!r}")
    return "".join(sorted(match[1]))


def demonstration(prompt: str, rng: random.Random) -> str:
    """What the model is shown before it learns any preference: right, or in reverse order."""
    right = answer(prompt)
    return right if rng.random() < RIGHT_DEMONSTRATIONS else right[::-1]


def reward(prompt: str, completion: str) -> float:
    """1 for the right answer, else 0."""
    return float(completion == answer(prompt))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
