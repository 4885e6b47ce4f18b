"""Report on a dataset before training: data type, matching objectives, lengths, dropped examples and bad rows."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import ceil
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from humanline_fused.training.data.findings import NO_SIGNAL, Findings
from humanline_fused.training.data.parallel import map_chunks
from humanline_fused.training.data.prepare import Cutter, lacks_signal
from humanline_fused.training.data.prompts import leaves_room
from humanline_fused.training.data.reading.sources import read_rows
from humanline_fused.training.data.rows.columns import Columns, apply_columns, misspelt, read_columns
from humanline_fused.training.data.rows.doubts import prompt_hint
from humanline_fused.training.data.rows.records import (
    ALL_COLUMNS,
    PROMPTS,
    TYPES,
    DataType,
    Row,
    Text,
    read_row,
    takers_of,
    type_of,
    used_columns,
)
from humanline_fused.training.data.rows.scored import grouped
from humanline_fused.training.data.tokenizing.tokenization import RowTokenizer, Tokenised, UncutExample
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.objectives.table import ROUND, find_objective, names_taking
from humanline_fused.training.positions import PositionLimit, check_positions, longest_sequence

SHOWN = 10
"""Maximum number of bad rows that are listed with their reason."""


@dataclass
class Inspection:
    """Counts, lengths and errors of a dataset.

    Attributes:
        objective: the objective whose columns were read; None for prompts alone.
        mapped: the setting ``columns``.
        columns: number of rows with each column.
        wrong: place and reason of the first row that cannot be used for each of the first ten reasons.
        alike: rows by reason.
        num_wrong: number of rows that cannot be used. Training would stop at the first of them.
        values: labels or rewards of each row's completions.
        weights: weights of the training examples; without a tokenizer, all labels or rewards.
        prompt_lengths, completion_lengths: in tokens if there is a tokenizer, else in characters.
        sizes: tokens of the prompt and of the longest completion of each example, before the cut.
        first: names and texts of the parts of the first example.
        num_examples: number of training examples or prompts; 0 without a tokenizer.
        findings: what else there is to say about the data.
    """

    objective: Objective | None
    tokenizer: PreTrainedTokenizerBase | None
    max_length: int
    mapped: Columns | None = None
    type: DataType | None = None
    num_rows: int = 0
    columns: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    alike: Counter[str] = field(default_factory=Counter)
    num_wrong: int = 0
    num_pairs: int = 0
    equal_pairs: int = 0
    values: list[list[float]] = field(default_factory=list)
    weights: Sequence[float] = ()
    prompt_lengths: list[int] = field(default_factory=list)
    completion_lengths: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    first: list[tuple[str, str]] = field(default_factory=list)
    num_examples: int = 0
    findings: Findings = field(default_factory=Findings)

    def rows(self, records: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Row | ValueError]]:
        """Yield the rows of records, or the errors of those that cannot be used, and count their columns."""
        for where, given in grouped(self._checked(records), self.findings):
            form = self.objective.form if self.objective else None
            row = form.converted(where, given, self.findings) if form and isinstance(given, Row) else given
            if row is None:
                continue
            if isinstance(row, Row) and self.objective:
                self.findings.add(NO_SIGNAL, where, count=int(lacks_signal(row, self.objective)))
            yield where, row

    def _checked(self, records: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Row | ValueError]]:
        for where, record in records:
            self.num_rows += 1
            try:
                yield where, self._row(where, record)
            except ValueError as error:
                yield where, error

    def _row(self, where: str, record: Any) -> Row:
        if isinstance(record, ValueError):
            raise record
        record = apply_columns(where, record, self.mapped)
        if isinstance(record, Mapping):
            self.columns.update(str(name) for name, value in record.items() if value is not None)
        looks = self.type or self._type_of(where, record)
        objective = None if looks is PROMPTS else self.objective or _first_taking(looks)
        row = read_row(where, record, objective or ROUND, self.type, findings=self.findings)
        self.type, self.objective = row.type, objective
        return row

    def add(self, row: Row, examples: Sequence[UncutExample] = ()) -> None:
        """Count a row and its examples, if they are known."""
        self._count(row)
        self._measure(row, examples)

    def _type_of(self, where: str, record: Any) -> DataType | None:
        if not isinstance(record, Mapping):
            looks = None
        else:
            looks = type_of(record, self.objective.types if self.objective else TYPES) or type_of(record)
        if self.objective is None and looks is not PROMPTS and not (looks and names_taking(looks)):
            if looks:
                raise ValueError(f"{where}: this looks like {looks}, which {takers_of(looks, ROUND)} takes")
            got = f"columns {', '.join(map(repr, record))}" if isinstance(record, Mapping) else f"{record!r:.80}"
            hint = ""
            if isinstance(record, Mapping):
                lacking = sorted(ALL_COLUMNS - record.keys())
                hint = misspelt(record, lacking, ALL_COLUMNS) or prompt_hint(record, ALL_COLUMNS)
            raise ValueError(
                f"{where}: expected an object with the columns of preferences, rewards or prompts, got {got}{hint}"
            )
        return looks

    def _count(self, row: Row) -> None:
        completions = row.completions
        if "chosen" in row.type.columns:
            self.num_pairs += 1
            self.equal_pairs += completions[0] == completions[1]
        if self.objective:
            self.values.append(self.objective.form.values(row))

    def _measure(self, row: Row, examples: Sequence[UncutExample]) -> None:
        if examples:
            self.prompt_lengths.append(len(examples[0].prompt))
            ids = [c for example in examples for c in example.completions]
            self.sizes += [(len(e.prompt), max(map(len, e.completions), default=0)) for e in examples]
            self.completion_lengths += map(len, ids)
        else:
            ids = []
            self.prompt_lengths.append(_characters(row.prompt))
            self.completion_lengths += map(_characters, row.completions)
        if not self.first:
            headings = self.objective.form.headings(row) if self.objective else []
            texts = [_as_text(text) for text in (row.prompt, *row.completions)]
            if examples and self.tokenizer:
                texts = [str(self.tokenizer.decode(part)) for part in (examples[0].prompt, *ids)]
            self.first = list(zip(["prompt", *headings], texts, strict=True))

    def check_positions(self, limit: PositionLimit | None) -> str | None:
        """Return a warning if a sequence is longer than the model was made for.

        Raises:
            ValueError: a sequence is longer than the model's table of positions.
        """
        mismatched = bool(self.objective and self.objective.mismatched)
        longest = longest_sequence("dataset", self.sizes, self.max_length, mismatched=mismatched)
        return check_positions(limit, longest, self.max_length) if self.sizes else None

    def refuse(self, reason: str) -> None:
        """Count a row that cannot be used, by its reason."""
        self.num_wrong += 1
        why = _why(reason)
        if len(self.wrong) < SHOWN and why not in self.alike:
            self.wrong.append(reason)
        self.alike[why] += 1


def objective_of(source: Any, *, split: str = "train", columns: Columns | str | None = None) -> Objective:
    """Return the first objective that accepts the data, by their first row.

    Raises:
        ValueError, TypeError: the source does not exist or is empty, the first row cannot be used, or it is a prompt
            alone.

    >>> objective_of([{"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5"}]).name
    'dpo'
    """
    found = Inspection(None, None, 1, read_columns(columns))
    for where, row in found.rows(read_rows(source, split)):
        if isinstance(row, ValueError):
            raise row
        if found.objective is None:
            raise ValueError(f"{where}: expected a completion or several, got a prompt alone")
        return found.objective
    raise ValueError(f"{source if isinstance(source, str) else 'dataset'}: expected at least one row, got none")


def inspect_data(
    source: Any,
    *,
    objective: str | Objective | None = None,
    split: str = "train",
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int = 1024,
    columns: Columns | str | None = None,
    train_on: str = "assistant",
    stops: Collection[int] = (),
    progress: bool = False,
) -> Inspection:
    """Read a whole dataset as training does, but continue after a bad row.

    Args:
        source, split: as in :func:`~humanline_fused.training.data.reading.sources.read_records`.
        objective: itself, its name, or ``module:Class``; default the first that accepts the type of the first row.
        tokenizer: gives lengths in tokens, and the examples that would be dropped or cut.
        max_length: maximum tokens of prompt and completion together.
        columns: as in :func:`~humanline_fused.training.data.prepare.prepare`.
        train_on, stops: as in :class:`~humanline_fused.training.data.tokenizing.tokenization.RowTokenizer`.
        progress: show a progress bar.

    Raises:
        ValueError, TypeError: the source or objective does not exist, or the source is empty.

    >>> print(report(inspect_data([{"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5"}])).splitlines()[0])
    type              preference data (prompt, chosen, rejected), for objective='dpo' or objective='kto'
    """
    objective = find_objective(objective) if isinstance(objective, str) else objective
    found = Inspection(objective, tokenizer, max_length, read_columns(columns))
    with tqdm(desc="Reading", unit=" rows", disable=None if progress else True) as bar:
        rows = found.rows(read_rows(source, split))
        for row, examples in _tokenized(found, rows, train_on, stops) if tokenizer else ((row, []) for _, row in rows):
            if isinstance(row, ValueError) or isinstance(examples, ValueError):
                found.refuse(str(row if isinstance(row, ValueError) else examples))
            else:
                found.add(row, examples)
            bar.update()
    if found.objective:
        if not tokenizer:
            found.weights = [value for row in found.values for value in row]
        found.objective.form.doubts(found.weights, found.findings)
    if not found.num_rows:
        raise ValueError(f"{source if isinstance(source, str) else 'dataset'}: expected at least one row, got none")
    return found


def _tokenized(
    found: Inspection, rows: Iterable[tuple[str, Row | ValueError]], train_on: str, stops: Collection[int]
) -> Iterator[tuple[Row | ValueError, list[UncutExample] | ValueError]]:
    """Yield rows with their examples, and count the examples that training would have."""
    assert found.tokenizer is not None
    given = found.tokenizer
    settings: dict[str, Any] = {"train_on": train_on, "stops": stops}

    @cache
    def tokenizer() -> RowTokenizer:  # the first row tells the form
        return RowTokenizer(given, found.objective.form if found.objective else None, **settings)

    def tokenize(chunk: Sequence[tuple[str, Row | ValueError]]) -> Tokenised:
        return tokenizer()(chunk)

    cutter = None
    for chunk, done in map_chunks(tokenize, rows):
        found.findings.merge(done.findings)
        if cutter is None and found.objective:
            cutter = Cutter(found.objective.form.sides, found.max_length, found.findings)
        for (where, row), examples in zip(chunk, done.rows, strict=True):
            if cutter and not isinstance(examples, ValueError):
                for example in examples:
                    cutter.add(where, example)
                found.num_examples, found.weights = len(cutter.written), cutter.written.weights
            elif isinstance(row, Row) and not isinstance(examples, ValueError):
                try:
                    found.num_examples += leaves_room(where, row, examples[0].prompt, found.max_length, found.findings)
                except ValueError as error:
                    row = error
            yield row, examples


def _first_taking(kind: DataType | None) -> Objective | None:
    names = names_taking(kind) if kind else []
    return find_objective(names[0]) if names else None


def report(found: Inspection) -> str:
    """Return an inspection as aligned text."""
    blocks = ["\n".join(f"{name:<18}{value}" for name, value in _facts(found))]
    if found.prompt_lengths:
        blocks.append(_lengths(found))
    if found.tokenizer:
        blocks.append(f"examples          {found.num_examples} with max_length={found.max_length}")
    if found.findings.found:
        blocks.append("\n".join(["findings", *(f"  {line}" for line in found.findings.lines())]))
    if found.first:
        parts = (f"  {name}\n" + "\n".join(f"    {line}" for line in text.split("\n")) for name, text in found.first)
        blocks.append("\n".join(["first example", *parts]))
    if found.num_wrong:
        counts = [found.alike[_why(reason)] for reason in found.wrong]
        lines = [f"  {reason}{_and_more(count - 1)}" for reason, count in zip(found.wrong, counts, strict=True)]
        rest = found.num_wrong - sum(counts)
        blocks.append("\n".join(["rows that cannot be used", *lines, *([f"  and {rest} more"] if rest else [])]))
    return "\n\n".join(blocks)


def _why(reason: str) -> str:
    """Return a reason without the place of the row before it, and without what the row has instead."""
    return reason.partition(": ")[2].partition(", got ")[0]


def _and_more(rows: int) -> str:
    return f" (and {rows} more row{'s' * (rows > 1)} alike)" if rows else ""


def _facts(found: Inspection) -> list[tuple[str, str]]:
    kind = found.type
    used = used_columns(kind, {}) if kind else set()
    rest = "for the reward" if kind is PROMPTS else "columns ignored"
    facts = [
        (
            "type",
            f"{kind}, for {takers_of(kind, found.objective or ROUND)}" if kind else "none that an objective takes",
        ),
        ("rows", f"{found.num_rows}" + (f", {found.num_wrong} of them cannot be used" if found.num_wrong else "")),
        ("columns used", ", ".join(name for name in found.columns if name in used) or "none"),
        (rest, ", ".join(name for name in found.columns if name not in used) or "none"),
    ]
    if found.num_pairs:
        facts.append(("pairs", f"{found.num_pairs}, {found.equal_pairs} with chosen equal to rejected"))
    if found.objective:
        facts += found.objective.form.facts(found.values)
    return facts


def _lengths(found: Inspection) -> str:
    unit = "tokens" if found.tokenizer else "characters"
    lines = [f"{unit:<14}{'min':>8}{'median':>8}{'90 %':>8}{'max':>8}"]
    for name, lengths in (("prompt", found.prompt_lengths), ("completion", found.completion_lengths)):
        if lengths:
            ordered = sorted(lengths)
            numbers = [ordered[max(0, ceil(share * len(ordered)) - 1)] for share in (0, 0.5, 0.9, 1)]
            lines.append(f"{name:<14}" + "".join(f"{number:>8}" for number in numbers))
    return "\n".join(lines)


def _characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(len(str(m.get("content") or "")) for m in text)


def _as_text(text: Text) -> str:
    if isinstance(text, str):
        return text
    return "\n".join(f"<{m['role']}> {m.get('content') or m.get('tool_calls') or ''}" for m in text)
