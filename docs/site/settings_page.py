"""Page with every setting of a run that transformers does not have, from the fields of ``HumanlineConfig``."""

import dataclasses
import inspect
from typing import Any

from transformers import TrainingArguments

from humanline_fused.training import HumanlineConfig

HEAD = """# Settings

Every setting is a field of [`HumanlineConfig`][humanline_fused.training.config.HumanlineConfig], a key of the YAML file
and an option of `humanline train`. Those of transformers' `TrainingArguments` are settings too; the second table has
the ones whose default differs.

"""


def settings() -> str:
    """Return the page as Markdown."""
    theirs = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    fields = [field for field in dataclasses.fields(HumanlineConfig) if field.init]
    own = [
        [f"`{field.name}`", f"`{default_of(field)}`", cell(field.metadata.get("help", ""))]
        for field in fields
        if field.name not in theirs
    ]
    changed = [
        [f"`{field.name}`", f"`{default_of(field)}`", f"`{default_of(theirs[field.name])}`"]
        for field in fields
        if field.name in theirs and default_of(field) != default_of(theirs[field.name])
    ]
    tables = table(["setting", "default", "meaning"], own), table(["setting", "default here", "transformers"], changed)
    return HEAD + "\n\n## Defaults that differ from transformers\n\n".join(tables) + "\n"


def default_of(field: dataclasses.Field[Any]) -> str:
    """Return a field's default as text."""
    if field.default_factory is not dataclasses.MISSING:
        return cell(repr(field.default_factory()))
    return (
        "required"
        if field.default is dataclasses.MISSING
        else cell(str(getattr(field.default, "value", field.default)))
    )


def cell(text: str) -> str:
    """Return a text on one line, without the marks of a table and of HTML."""
    return inspect.cleandoc(text).replace("\n", " ").replace("|", "/").replace("<", "&lt;")


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
