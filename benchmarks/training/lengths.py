"""Numbers of tokens of prompts and completions: drawn, or taken from a file."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np


class Group(NamedTuple):
    """Tokens of a prompt and of its completions, each with its end-of-sequence token."""

    prompt: int
    completions: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Of the sequences: the prompt once for every completion."""
        return len(self.completions) * self.prompt + sum(self.completions)


SHORT = 4
"""Tokens of a prompt, and of a completion, of a step that is not measured."""


class Lengths(Protocol):
    """Where the groups of a benchmark come from.

    Attributes:
        name: in tables and options.
        group: completions of one prompt, for an objective that takes any number.
        longest: tokens of the longest sequence that may come.
    """

    @property
    def name(self) -> str: ...

    @property
    def group(self) -> int: ...

    @property
    def longest(self) -> int: ...

    def draw(self, count: int, completions: int) -> list[Group]:
        """Return the same groups in every process, each with so many completions."""
        ...

    def __str__(self) -> str:
        """Their parameters."""
        ...


@dataclass(frozen=True)
class Uniform:
    """A prompt takes an eighth to a half of T, a sequence ``shortest`` to the whole of it."""

    T: int
    shortest: float = 0.5
    name: str = "uniform"
    group: int = 2

    @property
    def longest(self) -> int:
        return self.T

    def draw(self, count: int, completions: int) -> list[Group]:
        numbers = np.random.default_rng(0)

        def between(low: int, high: int) -> int:
            return int(numbers.integers(low, high + 1))

        def completion(prompt: int) -> int:
            return between(max(int(self.shortest * self.T), prompt + 2), self.T) - prompt

        prompts = [between(self.T // 8, self.T // 2) for _ in range(count)]
        return [Group(p, tuple(completion(p) for _ in range(completions))) for p in prompts]

    def __str__(self) -> str:
        return f"sequences of {self.shortest:g} to 1 times {self.T} tokens"


class LogNormal(NamedTuple):
    """A log-normal number of tokens, clipped."""

    median: float
    sigma: float  # of its logarithm
    least: int
    most: int

    def draw(self, numbers: np.random.Generator) -> int:
        return int(np.clip(numbers.lognormal(math.log(self.median), self.sigma), self.least, self.most))

    def __str__(self) -> str:
        if not self.sigma:
            return f"{self.median:g} tokens"
        return f"median {self.median:g}, sigma {self.sigma:g}, {self.least} to {self.most} tokens"


@dataclass(frozen=True)
class LogNormals:
    """Log-normal prompts and completions."""

    name: str
    group: int
    prompt: LogNormal
    completion: LogNormal

    @property
    def longest(self) -> int:
        return self.prompt.most + self.completion.most

    def draw(self, count: int, completions: int) -> list[Group]:
        numbers = np.random.default_rng(0)
        return [
            Group(self.prompt.draw(numbers), tuple(self.completion.draw(numbers) for _ in range(completions)))
            for _ in range(count)
        ]

    def __str__(self) -> str:
        return f"prompts: {self.prompt}; completions: {self.completion}"


@dataclass(frozen=True)
class Measured:
    """Those of a JSONL file, in its order.

    A line has a ``prompt`` and ``completions``, or ``chosen`` and ``rejected``, or a ``completion``: numbers of tokens
    without the end of sequence, or texts, whose words are counted.
    """

    file: Path
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, file: Path) -> "Measured":
        """Read a file.

        Raises:
            ValueError: a line gives no lengths.
        """
        lines = file.read_text().splitlines()
        return cls(file, tuple(_group(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line))

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def group(self) -> int:
        return max(len(group.completions) for group in self.groups)

    @property
    def longest(self) -> int:
        return max(group.prompt + max(group.completions) for group in self.groups)

    def draw(self, count: int, completions: int) -> list[Group]:
        fit = [Group(g.prompt, g.completions[:completions]) for g in self.groups if len(g.completions) >= completions]
        if len(fit) < count:
            raise ValueError(
                f"{self.file}: expected at least {count} prompts of {completions} completions or more, got {len(fit)}"
            )
        return fit[:count]

    def __str__(self) -> str:
        return f"{len(self.groups)} prompts of {self.file.name}"


def _group(line: str, where: str) -> Group:
    row = json.loads(line)

    def tokens(value: object) -> int:
        number = len(value.split()) if isinstance(value, str) else value
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"{where}: expected a text with a word, or a number of tokens >= 1, got {value!r:.80}")
        return number

    if not isinstance(row, dict) or "prompt" not in row:
        raise ValueError(f"{where}: expected a mapping with a prompt, got {line:.80}")
    given: Sequence[object] = row.get("completions") or [
        row[name] for name in ("chosen", "rejected", "completion") if name in row
    ]
    if not given:
        raise ValueError(f"{where}: expected completions, chosen and rejected or a completion, got {sorted(row)}")
    return Group(tokens(row["prompt"]), tuple(1 + tokens(value) for value in given))


PROMPT, COMPLETION = LogNormal(150, 0.6, 10, 600), LogNormal(250, 0.6, 10, 800)

NAMED: dict[str, Lengths] = {
    lengths.name: lengths
    for lengths in (
        LogNormals("ultrafeedback", 2, PROMPT._replace(sigma=0.8), COMPLETION._replace(sigma=0.7)),
        LogNormals("math8", 8, PROMPT, COMPLETION),
        LogNormals("math16", 16, PROMPT, COMPLETION),
        LogNormals("equal", 2, LogNormal(1, 0.0, 1, 1), LogNormal(250, 0.0, 250, 250)),  # nothing to share or to sort
    )
}


def lengths_of(name: str) -> Lengths:
    """Return the lengths of a name or of a file.

    Raises:
        ValueError: there are none.
    """
    if name in NAMED:
        return NAMED[name]
    if not Path(name).is_file():
        raise ValueError(f"lengths: expected {', '.join(NAMED)} or a JSONL file, got {name!r}")
    return Measured.of(Path(name))
