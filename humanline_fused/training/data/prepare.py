"""Reading, checking and tokenisation of datasets in TRL's columns."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from humanline_fused.printing import counted
from humanline_fused.training.data.findings import (
    BARE_END,
    DROPPED,
    EMPTY,
    EQUAL_PAIRS,
    NO_SIGNAL,
    NO_SIGNAL_DROPPED,
    TRUNCATED,
    Findings,
)
from humanline_fused.training.data.forms import Form, Learner
from humanline_fused.training.data.parallel import map_chunks
from humanline_fused.training.data.reading.sources import read_rows
from humanline_fused.training.data.rows.columns import Columns, apply_columns, read_columns
from humanline_fused.training.data.rows.records import Row, Taker, read_row
from humanline_fused.training.data.rows.scored import grouped
from humanline_fused.training.data.store import ExampleWriter, StoredExamples
from humanline_fused.training.data.tokenizing.tokenization import RowTokenizer, UncutExample


@dataclass(frozen=True)
class PreparedData:
    """Examples of a dataset, and what there is to say about it.

    Attributes:
        examples: the training examples.
        findings: counts of dropped, cut and lost parts.
    """

    examples: StoredExamples
    findings: Findings = field(default_factory=Findings)

    def summary(self) -> str:
        """Return the number of examples as text."""
        return counted(len(self.examples), "example")

    def notes(self) -> dict[str, Any]:
        """Return what is stored beside the examples, as JSON."""
        return {"findings": self.findings.to_json()}


class Cutter:
    """Cuts examples at ``max_length`` tokens, or drops them and counts the reason.

    Args:
        sides: completions of an example.
        max_length: maximum tokens of prompt and completion together.
        findings: get the counts.
    """

    def __init__(self, sides: int, max_length: int, findings: Findings) -> None:
        self.written = ExampleWriter(sides)
        self.max_length, self.findings = max_length, findings

    def add(self, where: str, example: UncutExample, row: int | None = None) -> None:
        """Add an example of a row, cut, or count the reason for dropping it."""
        prompt, room = example.prompt, self.max_length - len(example.prompt)
        first = int(len(prompt) == 0)  # without a prompt, a completion's first token is not predicted
        masks = [None if mask is None else mask[:room] for mask in example.masks]
        if room <= 0:
            self.findings.add(DROPPED, where)
            return
        cut = [completion[:room] for completion in example.completions]
        kept = [_kept(ids, mask, first) for ids, mask in zip(cut, masks, strict=True)]
        if any(not len(ids) for ids in kept):
            self.findings.add(EMPTY, where)
            return
        self.findings.add(BARE_END, where, count=example.blank)
        self.findings.add(TRUNCATED, where, count=sum(len(c) > room for c in example.completions))
        self.findings.add(EQUAL_PAIRS, where, count=int(len(kept) == 2 and np.array_equal(kept[0], kept[1])))
        self.written.add([prompt, *cut], masks, example.weight, example.reward, row, example.key)


def _kept(ids: np.ndarray, mask: np.ndarray | None, first: int) -> np.ndarray:
    """Return the ids that a loss counts."""
    return ids[first:] if mask is None else ids[first:][mask[first:]]


def checked_rows(
    source: Any, taker: Taker, split: str, columns: Columns | None, findings: Findings
) -> Iterator[tuple[str, Row | ValueError]]:
    """Yield the rows of a dataset with their places; for a row that cannot be used, the error."""
    like = None
    for where, record in read_rows(source, split):
        try:
            if isinstance(record, ValueError):
                raise record
            row = read_row(where, apply_columns(where, record, columns), taker, like, findings=findings)
        except ValueError as error:
            yield where, error
            continue
        like = row.type
        yield where, row


def prepare(
    source: Any,
    tokenizer: PreTrainedTokenizerBase,
    objective: Learner,
    *,
    max_length: int,
    split: str = "train",
    columns: Columns | str | None = None,
    scale_rewards: str = "group",
    drop_no_signal: bool = False,
    train_on: str = "assistant",
    stops: Collection[int] = (),
    num_proc: int | None = None,
    progress: bool = False,
) -> PreparedData:
    """Read, check and tokenise a dataset.

    Args:
        source, split: as in :func:`~humanline_fused.training.data.reading.sources.read_records`, with the columns of
            one of the objective's data types, as text or lists of messages. Pairs may contain the prompt instead of a
            column.
        columns: the dataset's columns that have other names, as for
            :func:`~humanline_fused.training.data.rows.columns.read_columns`.
        tokenizer: the tokenizer; its chat template renders messages.
        objective: gives the form of the data.
        max_length: maximum tokens of prompt and completion together; longer sequences are cut at the end.
        scale_rewards, train_on, stops: as in
            :class:`~humanline_fused.training.data.tokenizing.tokenization.RowTokenizer`.
        drop_no_signal: leave out groups of equal rewards.
        num_proc: number of processes; None: this one, with a thread for every core, at most 8.
        progress: show a progress bar.

    Raises:
        ValueError, TypeError: a record is invalid (with file and line number), or no example is left.
    """
    findings, columns = Findings(), read_columns(columns)
    rows = in_form(checked_rows(source, objective, split, columns, findings), objective.form, findings)
    rows = with_signal(rows, objective, drop_no_signal, findings)
    tokenize = RowTokenizer(tokenizer, objective.form, scale_rewards=scale_rewards, train_on=train_on, stops=stops)
    cutter, numbers = Cutter(objective.form.sides, max_length, findings), count()
    with tqdm(desc="Tokenizing", unit=" rows", disable=None if progress else True) as bar:
        for chunk, done in map_chunks(tokenize, rows, num_proc):
            findings.merge(done.findings)
            for (where, _), examples, number in zip(chunk, done.rows, numbers, strict=False):
                if isinstance(examples, ValueError):
                    raise examples
                for example in examples:
                    cutter.add(where, example, number if objective.form.grouped else None)
            bar.update(len(chunk))
    objective.form.doubts(cutter.written.weights, findings)
    if not len(cutter.written):
        reasons = findings.lines() or ["it has no rows"]
        raise ValueError(f"expected at least one example, got none ({'; '.join(reasons)})")
    return PreparedData(cutter.written.finish(), findings)


def in_form(
    rows: Iterable[tuple[str, Row | ValueError]], form: Form, findings: Findings
) -> Iterator[tuple[str, Row | ValueError]]:
    """Yield rows, grouped by prompt if they are scored, in a form."""
    for where, given in grouped(rows, findings):
        row = given if isinstance(given, ValueError) else form.converted(where, given, findings)
        if row is not None:
            yield where, row


def lacks_signal(row: Row, objective: Learner) -> bool:
    """Return True for a group of equal rewards, whose advantages are all 0."""
    return objective.form.has_rewards and len(set(row.values)) == 1


def with_signal(
    rows: Iterator[tuple[str, Row | ValueError]], objective: Learner, drop: bool, findings: Findings
) -> Iterator[tuple[str, Row | ValueError]]:
    """Yield rows, and count groups without signal, or leave them out."""
    for where, row in rows:
        if isinstance(row, Row) and lacks_signal(row, objective):
            findings.add(NO_SIGNAL_DROPPED if drop else NO_SIGNAL, where)
            if drop:
                continue
        yield where, row
