"""Prompts of online rounds, with the columns for the reward function."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.prepare import tokenized_prompt
from humanline_fused.training.data.records import Taker, Text, read_row
from humanline_fused.training.data.sources import read_records

NOT_HANDED_ON = ("prompt", "prompts", "completion", "completions")
"""Columns that are not passed on to the reward function; the round passes its own prompts and completions."""


@dataclass(frozen=True)
class PreparedPrompts:
    """Prompts of a dataset, and the number of dropped ones.

    Attributes:
        examples: token ids, without completions.
        texts: the prompts as given, text or messages.
        columns: for each prompt, the dataset's other columns, for the reward function.
        dropped: dropped prompts with ``max_length`` tokens or more.
    """

    examples: list[Example]
    texts: list[Text]
    columns: list[Mapping[str, Any]]
    dropped: int = 0

    def summary(self) -> str:
        """Return the numbers of kept and dropped prompts as text."""
        dropped = f", dropped (prompt >= max_length): {self.dropped}" if self.dropped else ""
        return f"{len(self.examples)} prompts{dropped}"


def prepare_prompts(
    source: Any,
    tokenizer: PreTrainedTokenizerBase,
    taker: Taker,
    *,
    max_length: int,
    split: str = "train",
    progress: bool = False,
) -> PreparedPrompts:
    """Read, check and tokenise the prompts of a dataset.

    Args:
        source, split: as in :func:`read_records`; the column ``prompt`` is text or a list of messages.
        tokenizer: the tokenizer; its chat template renders messages up to the beginning of the answer.
        taker: the consumer of the prompts, for error messages.
        max_length: maximum tokens of prompt and completion together.
        progress: show a progress bar.

    Raises:
        ValueError, TypeError: a record is invalid (with file and line number), or no prompt is left.
    """
    examples, texts, columns, dropped = [], [], [], 0
    for where, record in tqdm(read_records(source, split), desc="Tokenizing", unit=" rows", disable=not progress):
        row = read_row(where, record, taker)
        example = tokenized_prompt(where, row, tokenizer)
        if not len(example.prompt_ids):
            raise ValueError(f"{where}: expected a prompt of at least one token to sample from, got {row.prompt!r}")
        if len(example.prompt_ids) >= max_length:
            dropped += 1
            continue
        examples.append(example)
        texts.append(row.prompt)
        columns.append({name: value for name, value in record.items() if name not in NOT_HANDED_ON})
    if not examples:
        raise ValueError(
            f"expected at least one prompt, got none ({dropped} dropped: prompt >= max_length={max_length})"
        )
    if len(kinds := {tuple(sorted(given)) for given in columns}) > 1:
        raise ValueError(f"expected every prompt to have the same columns, got {sorted(kinds)}")
    return PreparedPrompts(examples, texts, columns, dropped)
