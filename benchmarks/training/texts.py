"""Records of random words, with given numbers of tokens. A word is a token."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.peers.trainers import Record
from benchmarks.training.lengths import Group

FIRST_WORD = 3
"""Token ids below are the special tokens of :meth:`benchmarks.training.setting.Setting.tokenizer`."""


def word(token_id: int) -> str:
    return f"w{token_id}"


def records(groups: Sequence[Group], objective: str, V: int, places: Mapping[int, int]) -> list[Record]:
    """Return a record for each group, in the objective's columns.

    Args:
        groups: their numbers of tokens.
        objective: its name.
        V: words.
        places: of each record in its optimizer step. Every other one is desirable, so that trainers that average over
            micro-batches and those that average over the step log the same.
    """
    numbers = np.random.default_rng(1)

    def text(length: int) -> str:
        return " ".join(map(word, numbers.integers(FIRST_WORD, V, length).tolist()))

    def record(index: int, group: Group) -> Record:
        completions = [f" {text(length - 1)}" for length in group.completions]  # the tokenizer adds the end of sequence
        return {"prompt": text(group.prompt), **COLUMNS[objective](places[index], completions)}

    return [record(index, group) for index, group in enumerate(groups)]


def _pair(place: int, completions: list[str]) -> Record:
    chosen, rejected = completions
    return {"chosen": chosen, "rejected": rejected}


def _labelled(place: int, completions: list[str]) -> Record:
    (completion,) = completions
    return {"completion": completion, "label": place % 2 == 0}


def _rewarded(place: int, completions: list[str]) -> Record:
    return {"completions": completions, "rewards": [float(i % 3) for i in range(len(completions))]}


COLUMNS: dict[str, Callable[[int, list[str]], Record]] = {"dpo": _pair, "kto": _labelled, "grpo": _rewarded}


def completions_of(record: Record) -> list[str]:
    """Return a record's completions."""
    return record.get("completions") or [
        record[name] for name in ("chosen", "rejected", "completion") if name in record
    ]
