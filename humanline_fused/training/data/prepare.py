"""Reading, checking and tokenisation of datasets in TRL's columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.forms import Learner
from humanline_fused.training.data.records import Row, Text, is_blank, read_row
from humanline_fused.training.data.sources import read_records


def _ids(tokenizer: PreTrainedTokenizerBase, text: Text, **template: Any) -> list[int]:
    if isinstance(text, str):
        return tokenizer(text)["input_ids"]  # pyright: ignore[reportReturnType]
    return tokenizer.apply_chat_template(text, tokenize=True, return_dict=True, **template)["input_ids"]  # pyright: ignore


def prompt_ids_of(tokenizer: PreTrainedTokenizerBase, prompt: Text, **template: Any) -> list[int]:
    """Return the token ids of a prompt alone, up to the beginning of the answer."""
    if isinstance(prompt, str):
        return _ids(tokenizer, prompt)
    return _ids(tokenizer, prompt, add_generation_prompt=True, **template)


def _common_prefix(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, completions: Sequence[Text], **template: Any
) -> tuple[list[int], list[list[int]]]:
    """Return the token ids of a prompt and of its completions, equal to TRL 1.16's.

    Each completion is tokenised together with its prompt. It begins at the first token that differs from the prompt
    alone, which may be before the prompt's end. Plain text gets an end-of-sequence token if it has none; messages get
    the one of the chat template, which receives ``template``.
    """
    if isinstance(prompt, str):
        eos = str(tokenizer.eos_token or "")
        texts = [c if str(c).endswith(eos) else f"{c}{eos}" for c in completions]
    else:
        texts = list(completions)
    prompt_ids = prompt_ids_of(tokenizer, prompt, **template)
    full = [_ids(tokenizer, prompt + text, **template) for text in texts]  # pyright: ignore[reportOperatorIssue]
    start = min((_common_prefix(prompt_ids, ids) for ids in full), default=len(prompt_ids))
    return prompt_ids[:start], [ids[start:] for ids in full]


def tokenized(
    where: str, row: Row, tokenizer: PreTrainedTokenizerBase, objective: Learner, scale_rewards: str = "group"
) -> Iterator[tuple[Example, int]]:
    """Yield the uncut examples of a row, each with the number of its completions that have no content.

    Raises:
        ValueError: the chat template rejects the row's messages.
    """
    end = str(tokenizer.eos_token or "")
    for draft in objective.form.drafts(row, scale_rewards):
        try:
            prompt_ids, completions = tokenize(tokenizer, row.prompt, draft.completions, **row.template)
        except (ValueError, TypeError, TemplateError) as error:
            raise ValueError(f"{where}: the tokenizer does not take it: {error}") from error
        ids = tuple(torch.tensor(c, dtype=torch.int32) for c in completions)
        example = Example(torch.tensor(prompt_ids, dtype=torch.int32), ids, draft.weight, draft.reward)
        yield example, sum(is_blank(text, end) for text in draft.completions)


def tokenized_prompt(where: str, row: Row, tokenizer: PreTrainedTokenizerBase) -> Example:
    """Return the prompt of a row as an example without completions.

    Raises:
        ValueError: the chat template rejects its messages.
    """
    try:
        ids = prompt_ids_of(tokenizer, row.prompt, **row.template)
    except (ValueError, TypeError, TemplateError) as error:
        raise ValueError(f"{where}: the tokenizer does not take it: {error}") from error
    return Example(torch.tensor(ids, dtype=torch.int32), ())


@dataclass
class PreparedData:
    """Examples of a dataset, and counts of dropped and truncated ones.

    Attributes:
        examples: the training examples.
        dropped: dropped examples whose prompt alone has ``max_length`` tokens or more.
        empty: dropped examples with a completion that has no token to learn.
        bare_ends: kept completions that are empty except for the end of sequence.
        truncated: completions cut at ``max_length``, which lost their end-of-sequence token.
        groups_without_signal: groups of equal rewards, whose advantages are all 0.
        groups_dropped: groups without signal that were dropped.
    """

    examples: list[Example] = field(default_factory=list)
    dropped: int = 0
    empty: int = 0
    bare_ends: int = 0
    truncated: int = 0
    groups_without_signal: int = 0
    groups_dropped: int = 0

    def add(self, example: Example, max_length: int, blank: int = 0) -> None:
        """Add an example, cut at ``max_length`` tokens, or count the reason for dropping it.

        Args:
            example: the uncut example.
            max_length: maximum tokens of prompt and completion together.
            blank: number of its completions without content.
        """
        prompt = example.prompt_ids
        first = int(len(prompt) == 0)  # without a prompt, a completion's first token is not predicted
        if len(prompt) >= max_length:
            self.dropped += 1
        elif any(len(c) <= first for c in example.completions):
            self.empty += 1
        else:
            room = max_length - len(prompt)
            self.bare_ends += blank
            self.truncated += sum(len(c) > room for c in example.completions)
            kept = tuple(c[:room].clone() for c in example.completions)
            self.examples.append(Example(prompt, kept, example.weight, example.reward))

    def summary(self) -> str:
        """Return the numbers of examples, and of dropped and cut ones, as text."""
        notes = (f"{what}: {count}" for what, count in self.notes() if count)
        return ", ".join([f"{len(self.examples)} examples", *notes])

    def notes(self) -> list[tuple[str, int]]:
        """Return descriptions and counts of dropped, empty and truncated examples."""
        return [
            ("dropped (prompt >= max_length)", self.dropped),
            ("dropped (a completion without a token)", self.empty),
            ("completions that are empty but for the end of sequence", self.bare_ends),
            ("completions cut at max_length (end of sequence lost)", self.truncated),
            ("groups without signal (equal rewards)", self.groups_without_signal - self.groups_dropped),
            ("groups without signal, dropped with beta=0", self.groups_dropped),
        ]


def prepare(
    source: Any,
    tokenizer: PreTrainedTokenizerBase,
    objective: Learner,
    *,
    max_length: int,
    split: str = "train",
    scale_rewards: str = "group",
    drop_no_signal: bool = False,
    progress: bool = False,
) -> PreparedData:
    """Read, check and tokenise a dataset.

    Args:
        source, split: as in :func:`~humanline_fused.training.data.sources.read_records`, with the columns of one of the
            objective's data types, as text or lists of messages. Pairs may contain the prompt instead of a column.
        tokenizer: the tokenizer; its chat template renders messages.
        objective: gives the form of the data.
        max_length: maximum tokens of prompt and completion together; longer sequences are cut at the end.
        scale_rewards: as in :func:`~humanline_fused.training.data.advantages.advantages`.
        drop_no_signal: leave out groups of equal rewards.
        progress: show a progress bar.

    Raises:
        ValueError, TypeError: a record is invalid (with file and line number), or no example is left.
    """
    data, like = PreparedData(), None
    for where, record in tqdm(read_records(source, split), desc="Tokenizing", unit=" rows", disable=not progress):
        row = read_row(where, record, objective, like)
        like = row.type
        if objective.form.has_rewards and len(set(row.values)) == 1:
            data.groups_without_signal += 1
            if drop_no_signal:
                data.groups_dropped += 1
                continue
        for example, blank in tokenized(where, row, tokenizer, objective, scale_rewards):
            data.add(example, max_length, blank)
    if not data.examples:
        reasons = [
            f"{data.dropped} dropped: prompt >= max_length={max_length}",
            *([f"{data.empty} dropped: a completion without a token"] if data.empty else []),
            *([f"{data.groups_dropped} groups dropped: equal rewards"] if data.groups_dropped else []),
        ]
        raise ValueError(f"expected at least one example, got none ({'; '.join(reasons)})")
    return data
