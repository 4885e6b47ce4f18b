"""Style sheet of the page of `humanline show`, in light and dark colours."""

STEPS = 10
"""Number of shades per colour."""

Color = tuple[int, int, int]

PAPER: tuple[Color, Color] = ((255, 255, 255), (22, 24, 28))
BLUE: tuple[Color, Color] = ((103, 169, 207), (33, 102, 172))
RED: tuple[Color, Color] = ((239, 138, 98), (178, 24, 43))
"""In light and in dark: ColorBrewer's RdBu, of three classes and of its dark ends. It is safe for colour-blind readers,
and legible under the text of each scheme."""

LAYOUT = """body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 0 auto 9rem; max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h2 a { float: right; font-size: 1rem; font-weight: 400; }
h3 { font-size: 1rem; margin: 1rem 0 .2rem; }
a { color: var(--link); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
.note { border: 2px solid var(--ink); padding: .5rem .8rem; font-weight: 600; }
.legend, .index { display: flex; flex-wrap: wrap; gap: .2rem; align-items: center; }
.legend span { padding: .1rem .5rem; }
.legend .item { display: inline-flex; align-items: center; padding: 0; }
.item > :first-child { flex: none; }
.index { list-style: none; padding: 0; gap: .2rem 1rem; max-height: 12rem; overflow-y: auto; }
.index a { display: inline-block; padding: .2rem 0; }
.numbers { margin: 0; color: var(--quiet); }
.tokens { font: 18px/2.1 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; }
.t { unicode-bidi: isolate; border-radius: 2px; padding: .1rem 0; margin-right: 1px; cursor: default;
  scroll-margin: 30vh 0; }
.prompt { color: var(--quiet); }
.high { font-weight: 700; outline: 1px solid var(--ink); border-top: 4px solid var(--ink); }
.low { font-weight: 700; outline: 1px solid var(--ink); border-bottom: 4px solid var(--ink); }
.t:focus { outline: 3px solid var(--ink); }
.t[data-tip]:hover::after, .t[data-tip]:focus::after { content: attr(data-tip); position: fixed; left: 0; right: 0;
  bottom: 0; padding: .8rem 1rem; background: var(--ink); color: var(--paper); font: 400 15px/1.4 system-ui, sans-serif;
  white-space: pre-wrap; unicode-bidi: plaintext; z-index: 1; }
.t[data-tip]:hover::after { z-index: 2; }
.next { position: fixed; right: 1rem; bottom: 6.5rem; padding: .5rem 1rem; background: var(--paper); z-index: 3;
  border: 2px solid var(--ink); border-radius: 4px; font: 600 15px/1.4 system-ui, sans-serif; opacity: 0;
  pointer-events: none; }
.t:focus + .next, .next:focus, .next:hover { opacity: 1; pointer-events: auto; }
@media (max-width: 30rem) { dl { display: block; } dd { margin: 0 0 .4rem; } .tokens { font-size: 16px; } }
"""

LIGHT = "--ink: #1a1a1a; --paper: #fff; --quiet: #595959; --line: #ccc; --link: #0b57d0;"
DARK = "--ink: #f0f0f0; --paper: #16181c; --quiet: #a8adb5; --line: #444; --link: #8ab4f8;"


def style() -> str:
    """Return the style sheet."""
    dark = f":root {{ {DARK} }}\n{_shades(1)}"
    return (
        f":root {{ color-scheme: light dark; {LIGHT} }}\n{_shades(0)}{LAYOUT}"
        f"@media (prefers-color-scheme: dark) {{\n{dark}}}\n"
    )


def _shades(scheme: int) -> str:
    rules = []
    for letter, full in (("b", BLUE[scheme]), ("r", RED[scheme])):
        for shade in range(1, STEPS + 1):
            rgb = (round(w + (f - w) * shade / STEPS) for w, f in zip(PAPER[scheme], full, strict=True))
            rules.append(f".{letter}{shade} {{ background: rgb({', '.join(map(str, rgb))}); }}")
    return "\n".join([*rules, ".z { background: var(--paper); box-shadow: inset 0 -1px var(--line); }", ""])
