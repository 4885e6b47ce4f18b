"""Prompts whose completions the policy samples, with the columns for the reward function."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from humanline_fused.printing import counted
from humanline_fused.training.data.findings import DROPPED, Findings
from humanline_fused.training.data.parallel import map_chunks
from humanline_fused.training.data.reading.sources import read_records
from humanline_fused.training.data.rows.columns import Columns, apply_columns, read_columns
from humanline_fused.training.data.rows.records import Row, Taker, Text, read_row
from humanline_fused.training.data.store import ExampleWriter, StoredExamples
from humanline_fused.training.data.tokenizing.tokenization import Ids, RowTokenizer

NOT_HANDED_ON = ("prompt", "prompts", "completion", "completions")
"""Columns that are not passed on to the reward function, which gets the prompts and completions of the samples."""


@dataclass(frozen=True)
class PreparedPrompts:
    """Prompts of a dataset, and what there is to say about it.

    Attributes:
        examples: token ids, without completions.
        texts: the prompts as given, text or messages.
        columns: for each prompt, the dataset's other columns, for the reward function.
        kept: indices of the prompts in the dataset.
        findings: counts of dropped prompts and lost parts.
    """

    examples: StoredExamples
    texts: list[Text]
    columns: list[Mapping[str, Any]]
    kept: list[int]
    findings: Findings = field(default_factory=Findings)

    def summary(self) -> str:
        """Return the number of prompts as text."""
        return counted(len(self.examples), "prompt")

    def notes(self) -> dict[str, Any]:
        """Return what is stored beside the examples, as JSON."""
        return {"findings": self.findings.to_json(), "kept": self.kept}


def prepare_prompts(
    source: Any,
    tokenizer: PreTrainedTokenizerBase,
    taker: Taker,
    *,
    max_length: int,
    split: str = "train",
    columns: Columns | str | None = None,
    num_proc: int | None = None,
    progress: bool = False,
) -> PreparedPrompts:
    """Read, check and tokenise the prompts of a dataset.

    Args:
        source, split: as in :func:`read_records`; the column ``prompt`` is text or a list of messages.
        tokenizer: the tokenizer; its chat template renders messages up to the beginning of the answer.
        taker: the consumer of the prompts, for error messages.
        max_length: maximum tokens of prompt and completion together.
        columns: as in :func:`~humanline_fused.training.data.prepare.prepare`, for the prompt; the reward function gets
            the columns as they are in the dataset.
        num_proc, progress: as in :func:`~humanline_fused.training.data.prepare.prepare`.

    Raises:
        ValueError, TypeError: a record is invalid (with file and line number), or no prompt is left.
    """
    findings, written, kept = Findings(), ExampleWriter(sides=0), []
    columns = read_columns(columns)
    given: list[_Given] = []

    def rows() -> Iterator[tuple[str, Row]]:
        for row, one in _read(source, split, taker, columns, findings):
            given.append(one)
            yield one.where, row

    numbers = count()
    with tqdm(desc="Tokenizing", unit=" rows", disable=None if progress else True) as bar:
        for chunk, done in map_chunks(RowTokenizer(tokenizer, None), rows(), num_proc):
            findings.merge(done.findings)
            for (where, row), made, number in zip(chunk, done.rows, numbers, strict=False):
                if isinstance(made, ValueError):
                    raise made
                ids = made[0].prompt
                if leaves_room(where, row, ids, max_length, findings):
                    written.add([ids], [], 0.0, 0.0)
                    kept.append(number)
            bar.update(len(chunk))
    if not kept:
        raise ValueError(f"expected at least one prompt, got none ({'; '.join(findings.lines()) or 'it has no rows'})")
    return _prompts(written.finish(), given, kept, findings)


def leaves_room(where: str, row: Row, ids: Ids, max_length: int, findings: Findings) -> bool:
    """Return True for a prompt that leaves room for a completion; one that does not is dropped, and counted.

    Args:
        where: place of the row.
        row, ids: the prompt, and its token ids.
        max_length: maximum tokens of prompt and completion together.
        findings: get the count.

    Raises:
        ValueError: the prompt has no token.
    """
    if not len(ids):
        raise ValueError(f"{where}: expected a prompt of at least one token to sample from, got {row.prompt!r}")
    findings.add(DROPPED, where, count=int(len(ids) >= max_length))
    return len(ids) < max_length


def with_texts(
    examples: StoredExamples,
    notes: Mapping[str, Any],
    source: Any,
    taker: Taker,
    *,
    split: str = "train",
    columns: Columns | str | None = None,
) -> PreparedPrompts:
    """Return stored prompts, with their texts and columns read again.

    Args:
        examples, notes: the stored examples, and :meth:`PreparedPrompts.notes`.
        source, taker, split, columns: as in :func:`prepare_prompts`.
    """
    given = [one for _, one in _read(source, split, taker, read_columns(columns), Findings())]
    return _prompts(examples, given, notes["kept"], Findings.from_json(notes["findings"]))


class _Given(NamedTuple):
    """A prompt as it is in the dataset, with its place and the columns to hand on."""

    where: str
    text: Text
    columns: Mapping[str, Any]


def _read(
    source: Any, split: str, taker: Taker, columns: Columns | None, findings: Findings
) -> Iterator[tuple[Row, _Given]]:
    for where, record in read_records(source, split):
        row = read_row(where, apply_columns(where, record, columns), taker, findings=findings)
        others = {name: value for name, value in record.items() if name not in NOT_HANDED_ON}
        yield row, _Given(where, row.prompt, others)


def _prompts(
    examples: StoredExamples, given: Sequence[_Given], kept: Sequence[int], findings: Findings
) -> PreparedPrompts:
    prompts = [given[i] for i in kept]
    for prompt in prompts:
        _check_alike(prompts[0], prompt)
    texts, columns = [prompt.text for prompt in prompts], [prompt.columns for prompt in prompts]
    return PreparedPrompts(examples, texts, columns, list(kept), findings)


def _check_alike(first: _Given, prompt: _Given) -> None:
    """Raise ValueError unless both prompts have the same columns."""
    if first.columns.keys() == prompt.columns.keys():
        return
    differing = (
        ("lacks", [name for name in first.columns if name not in prompt.columns]),
        ("has", [name for name in prompt.columns if name not in first.columns]),
    )
    said = ", and ".join(f"{verb} {', '.join(map(repr, names))}" for verb, names in differing if names)
    raise ValueError(
        f"{prompt.where}: expected the columns of {first.where}, as the reward function gets a list of each, but this "
        f"{said}"
    )
