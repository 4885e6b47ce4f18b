"""Formulas of the pages as MathML, which a browser draws without a script."""

import re
from html import unescape

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
TAG = re.compile(r"\\tag\{(\w+)\}")


def on_page_content(html: str, **_: object) -> str:
    """Replace the formulas of a page's HTML."""
    return FORMULA.sub(drawn, html)


def drawn(formula: re.Match[str]) -> str:
    """Return a formula as HTML; the number of an equation stands at its right."""
    element, text = formula[1], unescape(formula[2]).strip()
    if element == "span":
        return convert(text)
    number = "".join(f"<span>({tag})</span>" for tag in TAG.findall(text))
    return f'<div class="equation">{convert(TAG.sub("", text), display="block")}{number}</div>'
