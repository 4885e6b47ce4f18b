"""Griffe extension: what our docstrings have and Google's style has not becomes what mkdocstrings reads."""

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:.+\n?)*\n?)+", re.MULTILINE)
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([\w.]+)`")
SHARED = re.compile(r"^    ((?:\w+, )+\w+):((?:.*)(?:\n {8}.*)*)", re.MULTILINE)


class Docstrings(Extension):
    """Puts examples (``>>>``) in fences and Sphinx's roles in code, and gives names with one text that text each."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            text = SHARED.sub(lambda entry: "\n".join(f"    {name}:{entry[2]}" for name in entry[1].split(", ")), text)
            obj.docstring.value = EXAMPLE.sub(lambda example: f"```pycon\n{example[0].rstrip()}\n```\n", text)
