"""Prompts of online rounds, with the columns for the reward function."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from humanline_fused.training.data.chunks import map_chunks
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.findings import DROPPED, Findings
from humanline_fused.training.data.records import Row, Taker, Text, read_row
from humanline_fused.training.data.sources import read_records
from humanline_fused.training.data.store import ExampleWriter
from humanline_fused.training.data.tokenization import RowTokenizer

NOT_HANDED_ON = ("prompt", "prompts", "completion", "completions")
"""Columns that are not passed on to the reward function; the round passes its own prompts and completions."""


@dataclass(frozen=True)
class PreparedPrompts:
    """Prompts of a dataset, and what there is to say about it.

    Attributes:
        examples: token ids, without completions.
        texts: the prompts as given, text or messages.
        columns: for each prompt, the dataset's other columns, for the reward function.
        findings: counts of dropped prompts and lost parts.
    """

    examples: Sequence[Example]
    texts: list[Text]
    columns: list[Mapping[str, Any]]
    findings: Findings = field(default_factory=Findings)

    def summary(self) -> str:
        """Return the number of prompts as text."""
        return f"{len(self.examples)} prompts"


def prepare_prompts(
    source: Any,
    tokenizer: PreTrainedTokenizerBase,
    taker: Taker,
    *,
    max_length: int,
    split: str = "train",
    num_proc: int | None = None,
    progress: bool = False,
) -> PreparedPrompts:
    """Read, check and tokenise the prompts of a dataset.

    Args:
        source, split: as in :func:`read_records`; the column ``prompt`` is text or a list of messages.
        tokenizer: the tokenizer; its chat template renders messages up to the beginning of the answer.
        taker: the consumer of the prompts, for error messages.
        max_length: maximum tokens of prompt and completion together.
        num_proc, progress: as in :func:`~humanline_fused.training.data.prepare.prepare`.

    Raises:
        ValueError, TypeError: a record is invalid (with file and line number), or no prompt is left.
    """
    findings, texts, columns = Findings(), [], []
    written = ExampleWriter(sides=0)
    given: deque[Mapping[str, Any]] = deque()

    def rows() -> Iterator[tuple[str, Row]]:
        for where, record in read_records(source, split):
            row = read_row(where, record, taker)
            given.append({name: value for name, value in record.items() if name not in NOT_HANDED_ON})
            yield where, row

    with tqdm(desc="Tokenizing", unit=" rows", disable=not progress) as bar:
        for chunk, done in map_chunks(RowTokenizer(tokenizer, None), rows(), num_proc):
            findings.merge(done.findings)
            for (where, row), made in zip(chunk, done.rows, strict=True):
                if isinstance(made, ValueError):
                    raise made
                (prompt,), others = made, given.popleft()
                if not len(prompt.prompt):
                    raise ValueError(
                        f"{where}: expected a prompt of at least one token to sample from, got {row.prompt!r}"
                    )
                if len(prompt.prompt) >= max_length:
                    findings.add(DROPPED, where)
                    continue
                written.add([prompt.prompt], [], 0.0, 0.0)
                texts.append(row.prompt)
                columns.append(others)
            bar.update(len(chunk))
    if not texts:
        raise ValueError(f"expected at least one prompt, got none ({'; '.join(findings.lines()) or 'it has no rows'})")
    if len(kinds := {tuple(sorted(names)) for names in columns}) > 1:
        raise ValueError(f"expected every prompt to have the same columns, got {sorted(kinds)}")
    return PreparedPrompts(written.finish(), texts, columns, findings)
