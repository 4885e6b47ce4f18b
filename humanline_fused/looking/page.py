"""Self-contained HTML page of sequences whose tokens are coloured by their log-ratio."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as escape_markup
from itertools import groupby

from humanline_fused.looking.page_style import STEPS, style
from humanline_fused.looking.scored_sequences import ScoredSequence
from humanline_fused.printing import escaped

FAINTEST = 0.01
"""Smallest log-ratio in nats that may have the full colour, so that rounding does not look like a difference."""

MARKS = (
    ("high", "line above", "clamped: above the upper bound"),
    ("low", "line below", "clamped: below the lower bound"),
    ("prompt", "grey text", "prompt or turn of others, not scored"),
)
"""In the legend: the class of a token, how it looks, and what that means."""


@dataclass(frozen=True)
class Summary:
    """Header of the page.

    Attributes:
        title: title of the page.
        facts: pairs of a name and its description.
        note: text in a box; empty for none.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    note: str = ""


def page(summary: Summary, sequences: Sequence[ScoredSequence]) -> str:
    """Return the text of the page, to be written in UTF-8. All text from data or settings is escaped."""
    scale = scale_of(sequences)
    facts = "\n".join(f"<dt>{_escape(name)}</dt><dd>{_escape(what)}</dd>" for name, what in summary.facts)
    note = f'<p class="note">{_escape(summary.note)}</p>\n' if summary.note else ""
    clamped = _Clamped(sum(int(s.low.sum()) + int(s.high.sum()) for s in sequences))
    examples = [(example, list(group)) for example, group in groupby(sequences, key=lambda s: s.example)]
    sections = "\n".join(
        f'<section id="example-{n}">\n<h2>Example {example}<a href="#index"> index</a></h2>\n'
        f"{''.join(_sequence(s, scale, clamped) for s in group)}</section>"
        for n, (example, group) in enumerate(examples)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escape(summary.title)}</title>
<style>
{style()}</style>
</head>
<body>
<header>
<h1>{_escape(summary.title)}</h1>
{note}<dl>
{facts}
</dl>
{_legend(scale)}
{_index(examples)}
</header>
<main>
{sections}
</main>
</body>
</html>
"""


def scale_of(sequences: Sequence[ScoredSequence]) -> float:
    """Return the smallest log-ratio in nats with the full colour: the largest one within the bounds."""
    inside = [s.clamped.abs().max().item() for s in sequences if len(s.clamped)]
    return max([FAINTEST, *(value for value in inside if math.isfinite(value))])


def shade_of(log_ratio: float, scale: float) -> str:
    """Return the CSS class of a token's colour: ``b1`` to ``b10`` below 0, ``r1`` to ``r10`` above, ``z`` at 0.

    >>> shade_of(-0.5, 1.0), shade_of(0.04, 1.0), shade_of(7.0, 1.0)
    ('b5', 'z', 'r10')
    """
    shade = min(STEPS, round(STEPS * min(abs(log_ratio) / scale, 1.0))) if not math.isnan(log_ratio) else 0
    return f"{'b' if log_ratio < 0 else 'r'}{shade}" if shade else "z"


def _legend(scale: float) -> str:
    swatches = []
    for tenths in (-10, -7, -3, 0, 3, 7, 10):
        value = scale * tenths / STEPS
        edge = {-10: "≤ ", 10: "≥ "}.get(tenths, "")
        swatches.append(f'<span class="{shade_of(value, scale)}">{edge}{value:+.3g}</span>')
    explained = "".join(
        f'<span class="item"><span class="{name}">{look}</span><span>{what}</span></span>' for name, look, what in MARKS
    )
    return (
        '<div class="legend"><span>log π − log ref, nats:</span>' + "".join(swatches) + "</div>\n"
        f'<div class="legend">{explained}</div>\n'
        "<p>Red: the policy gives the token a higher probability than the reference; blue: a lower one. A clamped "
        "token counts with the bound and gets no gradient. Point at a token, or move to it with Tab, to see its "
        "numbers.</p>"
    )


class _Clamped:
    """Numbers the clamped tokens in the order of the page, for links from each to the next."""

    def __init__(self, total: int) -> None:
        self.total, self.number = total, 0

    def attribute_and_link(self) -> tuple[str, str]:
        """Return the ``id`` of the next clamped token as an attribute, and its link to the one after it."""
        self.number += 1
        where = self.number % self.total + 1
        text = f"next clamped ({where} of {self.total})"
        return f' id="clamped-{self.number}"', f'<a class="next" href="#clamped-{where}">{text}</a>'


def _index(examples: Sequence[tuple[int, Sequence[ScoredSequence]]]) -> str:
    """Return links to the first clamped token and to every example, with its number of clamped tokens."""
    counts = [sum(int(s.low.sum()) + int(s.high.sum()) for s in group) for _, group in examples]
    first = (
        '<p><a href="#clamped-1">First clamped token</a>. From a clamped token, its button or the keys Tab and Enter '
        "go to the next one.</p>"
        if any(counts)
        else "<p>No token is clamped.</p>"
    )
    links = "\n".join(
        f'<li><a href="#example-{n}">example {example}: {count} clamped</a></li>'
        for n, ((example, _), count) in enumerate(zip(examples, counts, strict=True))
    )
    return f'<nav id="index">\n{first}\n<ul class="index">\n{links}\n</ul>\n</nav>'


def _sequence(s: ScoredSequence, scale: float, clamped: _Clamped) -> str:
    low, high = int(s.low.sum()), int(s.high.sum())
    numbers = [
        f"sum of log-ratios {s.log_ratio.sum().item():+.4f} nats, after the clamp {s.clamped.sum().item():+.4f}",
        *([] if s.reward is None else [f"reward β·R {s.reward:+.4f}"]),
        f"clamped {low + high} of {len(s.log_ratio)} tokens ({low} below, {high} above)",
    ]
    tokens = "".join(_token(s, position, scale, clamped) for position in range(len(s.ids)))
    return (
        f'<article>\n<h3>{_escape(s.role)}</h3>\n<p class="numbers">{"; ".join(numbers)}</p>\n'
        f'<p class="tokens">{tokens}</p>\n</article>\n'
    )


def _token(s: ScoredSequence, position: int, scale: float, numbers: _Clamped) -> str:
    text = visible(s.texts[position])
    tip = f"“{text}”  id {s.ids[position]}"
    if position not in s.positions:
        return f'<span class="t prompt" data-tip="{_escape(tip)} · not scored">{_escape(text)}</span>'
    n = s.positions.index(position)
    log_ratio = s.log_ratio[n].item()
    clamped = "clamped, below the lower bound" if s.low[n] else "clamped, above the upper bound" if s.high[n] else ""
    tip += (
        f" · log π {s.logp[n].item():.4f} · log ref {s.ref_logp[n].item():.4f} · log-ratio {log_ratio:+.4f} nats · "
        + (clamped or "not clamped")
    )
    marks = f"t {shade_of(log_ratio, scale)}" + (" low" if s.low[n] else " high" if s.high[n] else "")
    attribute, link = numbers.attribute_and_link() if clamped else ("", "")
    return f'<span class="{marks}"{attribute} tabindex="0" data-tip="{_escape(tip)}">{_escape(text)}</span>{link}'


def visible(text: str) -> str:
    """Return the text with visible line ends, tabs and control characters.

    >>> visible("a\\n\\x00")
    'a↵\\n\\\\x00'
    """
    return escaped(text).replace("\n", "↵\n").replace("\t", "⇥\t")


def _escape(text: str) -> str:
    return escape_markup(escaped(text))
