"""The demo's task: put the letters in order. Easy to state, easy to check, hard enough to get wrong.

A prompt is ``"sort deadbeef: "``, its only right answer ``"abddeeef"``. An answer earns the share of positions that are
right, and nothing if its length is wrong, so that every prompt has a best and a worst sample.

>>> answer("sort deadbeef: ")
'abddeeef'
>>> reward("sort cab: ", "abc"), reward("sort cab: ", "acb"), reward("sort cab: ", "ab")
(1.0, 0.3333333333333333, 0.0)
"""

import json
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_prompts(count: int, rng: random.Random, lengths: tuple[int, int] = (8, 12)) -> list[str]:
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
        raise ValueError(f"expected a prompt like 'sort cab: ', got {prompt!r}")
    return "".join(sorted(match[1]))


def reward(prompt: str, completion: str) -> float:
    """The share of positions of ``completion`` that are right, in [0, 1]; 0 if its length is wrong."""
    right = answer(prompt)
    if len(completion) != len(right):
        return 0.0
    return sum(a == b for a, b in zip(completion, right, strict=True)) / len(right)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object a line, in TRL's columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
