"""The ``columns`` setting: which columns of a dataset are the prompt, the completions and the rest."""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from humanline_fused.training.data.reading.exact_json import parse
from humanline_fused.validation.values import nearest

Columns = Mapping[str, str | list[str] | None]
"""Source columns by target column: a name, names whose texts are joined by a newline, or None for no such column."""

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
TARGETS = (
    *("prompt", "chosen", "rejected", "completion", "label", "completions", "rewards", "reward", "score"),
    *(*SYSTEM_COLUMNS, *TEMPLATE_COLUMNS, "image", "images"),
)
"""Columns that rows may have."""
PROMPT_PARTS = (
    *(*SYSTEM_COLUMNS, "history", "conversation", "conversations", "dialogue", "instruction", "instructions"),
    *("question", "query", "problem", "user_prompt", "user_input", "user", "task", "input", "context", "passage"),
    *("trajectory", "initial_reason_steps"),
)
"""Columns that usually are the prompt or a part of it, in the order in which they are joined."""


class Renamed(dict[str, Any]):
    """A record after :func:`apply_columns`.

    Attributes:
        renamed: columns that the setting gives.
        without: columns that the setting says do not exist.
    """

    def __init__(self, record: Mapping[str, Any], renamed: frozenset[str], without: frozenset[str]) -> None:
        super().__init__(record)
        self.renamed, self.without = renamed, without


def read_columns(given: Mapping[str, Any] | str | None, name: str = "columns") -> dict[str, Any] | None:
    """Return the setting ``columns`` as a mapping; None for an empty one.

    Args:
        given: a mapping, JSON of one, or ``target=source`` pairs, separated by commas.
        name: the setting's name, for error messages.

    Raises:
        ValueError: a target is unknown, or a source is not a name, a list of names or None.

    >>> read_columns("prompt=question,system=null")
    {'prompt': 'question', 'system': None}
    """
    if isinstance(given, str):
        given = _parsed(given, name)
    if not given:
        return None
    if not isinstance(given, Mapping):
        raise ValueError(f"{name}: expected a mapping of columns to the dataset's columns, got {given!r:.80}")
    for target, source in given.items():
        if target not in TARGETS and not (source is None and target in PROMPT_PARTS):
            listed = ", ".join(TARGETS)
            raise ValueError(f"{name}: expected targets among {listed}, got {target!r}{nearest(target, TARGETS)}")
        names = [source] if isinstance(source, str) else source
        if source is not None and not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
            raise ValueError(f"{name}: expected {target} to be a column, a list of columns or null, got {source!r:.80}")
    return dict(given)


def _parsed(text: str, name: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return parse(text)
        except ValueError as error:
            raise ValueError(f"{name}: expected a mapping in JSON, got {text!r:.80}: {error}") from None
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if not all(equals and source.strip() for _, equals, source in pairs):
        raise ValueError(f"{name}: expected JSON or pairs such as prompt=question,chosen=good, got {text!r:.80}")
    found = {target.strip(): None if source.strip() == "null" else source.strip() for target, _, source in pairs}
    if len(found) < len(pairs):
        raise ValueError(f"{name}: expected each target once, got {text!r:.80}")
    return found


def apply_columns(where: str, record: Any, columns: Columns | None) -> Any:
    """Return a record with the columns of the setting in place of their sources.

    Args:
        where: place of the record, for error messages.
        record: the record; returned as it is if it is no mapping, or there is no setting.
        columns: the setting, as :func:`read_columns` returns it.

    Raises:
        ValueError: a source does not exist, or the record also has the target's column; or texts cannot be joined.

    >>> apply_columns("line 1", {"ask": "Is it green?", "chosen": "No."}, {"prompt": "ask"})
    {'chosen': 'No.', 'prompt': 'Is it green?'}
    """
    if not columns or not isinstance(record, Mapping):
        return record
    sources = {target: [source] if isinstance(source, str) else source for target, source in columns.items()}
    used = {name for names in sources.values() if names for name in names}
    without = frozenset(target for target, names in sources.items() if names is None)
    renamed = frozenset(sources) - without
    rest = {name: value for name, value in record.items() if name not in used | without}
    for target, names in sources.items():
        if names is None:
            continue
        for name in names:
            if name not in record:
                has = ", ".join(map(repr, record))
                raise ValueError(f"{where}: columns: expected a column {name!r} for {target}, this has {has}")
        if rest.get(target) not in (None, ""):
            said = f"expected {target} to come from {' and '.join(map(repr, names))} alone"
            raise ValueError(f"{where}: columns: {said}, but there is a column {target!r} too")
        rest[target] = record[names[0]] if len(names) == 1 else _joined(where, target, names, record)
    return Renamed(rest, renamed, without)


def _joined(where: str, target: str, names: list[str], record: Mapping[str, Any]) -> str | None:
    texts = []
    for name in names:
        value = record[name]
        if value is not None and not isinstance(value, str):
            raise ValueError(
                f"{where}: columns: expected texts to join for {target}, got {type(value).__name__} in {name!r}"
            )
        texts += [value] if value else []
    return "\n".join(texts) if texts else None


def misspelt(record: Mapping[str, Any], missing: Sequence[str], used: Collection[str]) -> str:
    """Return the end of an error message that names columns spelt nearly as the missing ones; empty without any.

    Args:
        record: the record.
        missing: columns that it lacks.
        used: columns that mean something else.

    >>> misspelt({"prompt": "Hi", "choosen": "yes"}, ["chosen", "rejected"], {"prompt"})
    ": 'choosen' looks like 'chosen': rename it, or columns: {chosen: choosen}"
    """
    names = [name for name, value in record.items() if value is not None and name not in used and isinstance(name, str)]
    close = {column: get_close_matches(column, names, n=1, cutoff=0.75) for column in missing}
    found = {column: match[0] for column, match in close.items() if match}
    if not found:
        return ""
    said = ", ".join(f"{name!r} looks like {column!r}" for column, name in found.items())
    mapping = ", ".join(f"{column}: {name}" for column, name in found.items())
    return f": {said}: rename {'it' if len(found) == 1 else 'them'}, or columns: {{{mapping}}}"
