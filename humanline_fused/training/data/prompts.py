"""What online rounds sample from: prompts, with the columns that their rewards need."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from humanline_fused.training.data.prepare import Example, prompt_ids_of
from humanline_fused.training.data.records import Text, read_row
from humanline_fused.training.data.sources import read_records

NOT_HANDED_ON = ("prompt", "prompts", "completion", "completions")
"""Columns that a reward function gets from the round instead."""


@dataclass(frozen=True)
class PreparedPrompts:
    """What became of a dataset.

    Attributes:
        examples: token ids, without completions.
        texts: the prompts as they came, text or messages.
        columns: of each prompt, the dataset's others, for the reward function.
        dropped: prompts that fill ``max_length``.
    """

    examples: list[Example]
    texts: list[Text]
    columns: list[Mapping[str, Any]]
    dropped: int = 0

    def summary(self) -> str:
        """How many there are, and what was left out."""
        dropped = f", dropped (prompt >= max_length): {self.dropped}" if self.dropped else ""
        return f"{len(self.examples)} prompts{dropped}"


def prepare_prompts(
    source: Any, tokenizer: PreTrainedTokenizerBase, *, max_length: int, split: str = "train", progress: bool = False
) -> PreparedPrompts:
    """Read, check and tokenise the prompts of a dataset.

    Args:
        source, split: as :func:`read_records`; the column ``prompt`` is text or a list of messages.
        tokenizer: whose chat template renders messages, up to where the answer begins.
        max_length: tokens of prompt and completion.
        progress: show a progress bar.

    Raises:
        ValueError, TypeError: a record does not fit (file and line number), or nothing is left.
    """
    examples, texts, columns, dropped = [], [], [], 0
    for where, record in tqdm(read_records(source, split), desc="Tokenizing", unit=" rows", disable=not progress):
        row = read_row(where, record, None)
        try:
            ids = prompt_ids_of(tokenizer, row.prompt, **row.template)
        except (ValueError, TypeError, TemplateError) as error:
            raise ValueError(f"{where}: the tokenizer does not take it: {error}") from error
        if not ids:
            raise ValueError(f"{where}: expected a prompt of at least one token to sample from, got {row.prompt!r}")
        if len(ids) >= max_length:
            dropped += 1
            continue
        examples.append(Example(torch.tensor(ids, dtype=torch.int32), ()))
        texts.append(row.prompt)
        columns.append({name: value for name, value in record.items() if name not in NOT_HANDED_ON})
    if not examples:
        raise ValueError(
            f"expected at least one prompt, got none ({dropped} dropped: prompt >= max_length={max_length})"
        )
    if len(kinds := {tuple(sorted(given)) for given in columns}) > 1:
        raise ValueError(f"expected every prompt to have the same columns, got {sorted(kinds)}")
    return PreparedPrompts(examples, texts, columns, dropped)
