"""Self-contained HTML page of sequences whose tokens are coloured by their log-ratio."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as escape_markup
from itertools import groupby

from humanline_fused.looking.scored_sequences import ScoredSequence
from humanline_fused.printing import escaped

STEPS = 10
"""Number of shades per colour."""

FAINTEST = 0.01
"""Smallest log-ratio in nats that may have the full colour, so that rounding does not look like a difference."""

WHITE, BLUE, RED = (255, 255, 255), (103, 169, 207), (239, 138, 98)
"""ColorBrewer's three-class RdBu: safe for colour-blind readers, and legible under black text."""

STYLE = """:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto 7rem; max-width: 62rem;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; border-top: 1px solid #ccc; padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1rem 0 .2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: #555; } dd { margin: 0; }
.note { border: 2px solid #1a1a1a; padding: .5rem .8rem; font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem; align-items: center; }
.legend span { padding: .1rem .5rem; }
.numbers { margin: 0; color: #333; }
.tokens { font: 15px/2.1 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; }
.t { unicode-bidi: isolate; border-radius: 2px; padding: .1rem 0; margin-right: 1px; cursor: default; }
.prompt { color: #666; }
.high { font-weight: 700; outline: 1px solid #1a1a1a; box-shadow: inset 0 4px #1a1a1a; }
.low { font-weight: 700; outline: 1px solid #1a1a1a; box-shadow: inset 0 -4px #1a1a1a; }
.t:focus { outline: 3px solid #1a1a1a; }
.t[data-tip]:hover::after, .t[data-tip]:focus::after { content: attr(data-tip); position: fixed; left: 0; right: 0;
  bottom: 0; padding: .8rem 1rem; background: #1a1a1a; color: #fff; font: 400 15px/1.4 system-ui, sans-serif;
  white-space: pre-wrap; unicode-bidi: plaintext; z-index: 1; }
.t[data-tip]:hover::after { z-index: 2; }
"""


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
    sections = "\n".join(
        f"<section>\n<h2>Example {example}</h2>\n{''.join(_sequence(s, scale) for s in group)}</section>"
        for example, group in groupby(sequences, key=lambda s: s.example)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escape(summary.title)}</title>
<style>
{_shades()}{STYLE}</style>
</head>
<body>
<header>
<h1>{_escape(summary.title)}</h1>
{note}<dl>
{facts}
</dl>
{_legend(scale)}
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


def _shades() -> str:
    rules = []
    for letter, full in (("b", BLUE), ("r", RED)):
        for shade in range(1, STEPS + 1):
            rgb = (round(w + (f - w) * shade / STEPS) for w, f in zip(WHITE, full, strict=True))
            rules.append(f".{letter}{shade} {{ background: rgb({', '.join(map(str, rgb))}); }}")
    return "\n".join([*rules, ".z { background: #fff; box-shadow: inset 0 -1px #bbb; }", ""])


def _legend(scale: float) -> str:
    swatches = []
    for tenths in (-10, -7, -3, 0, 3, 7, 10):
        value = scale * tenths / STEPS
        edge = {-10: "≤ ", 10: "≥ "}.get(tenths, "")
        swatches.append(f'<span class="{shade_of(value, scale)}">{edge}{value:+.3g}</span>')
    return (
        '<div class="legend"><span>log π − log ref, nats:</span>' + "".join(swatches) + "</div>\n"
        '<div class="legend"><span class="high">line above</span><span>clamped: above the upper bound</span>'
        '<span class="low">line below</span><span>clamped: below the lower bound</span>'
        '<span class="prompt">grey text</span><span>prompt or turn of others, not scored</span></div>\n'
        "<p>Red: the policy gives the token a higher probability than the reference; blue: a lower one. A clamped "
        "token counts with the bound and gets no gradient. Point at a token, or move to it with Tab, to see its "
        "numbers.</p>"
    )


def _sequence(s: ScoredSequence, scale: float) -> str:
    low, high = int(s.low.sum()), int(s.high.sum())
    numbers = [
        f"sum of log-ratios {s.log_ratio.sum().item():+.4f} nats, after the clamp {s.clamped.sum().item():+.4f}",
        *([] if s.reward is None else [f"reward β·R {s.reward:+.4f}"]),
        f"clamped {low + high} of {len(s.log_ratio)} tokens ({low} below, {high} above)",
    ]
    tokens = "".join(_token(s, position, scale) for position in range(len(s.ids)))
    return (
        f'<article>\n<h3>{_escape(s.role)}</h3>\n<p class="numbers">{"; ".join(numbers)}</p>\n'
        f'<p class="tokens">{tokens}</p>\n</article>\n'
    )


def _token(s: ScoredSequence, position: int, scale: float) -> str:
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
    return f'<span class="{marks}" tabindex="0" data-tip="{_escape(tip)}">{_escape(text)}</span>'


def visible(text: str) -> str:
    """Return the text with visible line ends, tabs and control characters.

    >>> visible("a\\n\\x00")
    'a↵\\n\\\\x00'
    """
    return escaped(text).replace("\n", "↵\n").replace("\t", "⇥\t")


def _escape(text: str) -> str:
    return escape_markup(escaped(text))
