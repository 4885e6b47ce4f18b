"""The token page shows colours, marks and sums, and escapes all data."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from humanline_fused.looking.page import Summary, page, scale_of
from humanline_fused.looking.page_style import style
from humanline_fused.looking.scored_sequences import ScoredSequence, texts_of
from tests.html_page import Page


def sequence(texts: list[str], log_ratios: list[float], role: str = "chosen", first: int = 1) -> ScoredSequence:
    """Return a sequence of tokens with these log-ratios after a prompt, with bounds -1 and 1."""
    ratio = torch.tensor(log_ratios)
    settings: dict[str, Any] = {"logp": ratio - 2, "ref_logp": torch.full_like(ratio, -2.0), "log_ratio": ratio}
    settings |= {"clamped": ratio.clamp(-1, 1), "low": ratio < -1, "high": ratio > 1}
    ids = list(range(len(texts)))
    positions = ids[first:]
    return ScoredSequence(example=0, role=role, ids=ids, texts=texts, positions=positions, reward=0.25, **settings)


HOSTILE = ["<b>ask", "<script>alert(1)</script>", '" onfocus="alert(2)', "&amp;", "it's", "<!--", "</p></main>", "a\nb"]


@pytest.fixture
def hostile_page() -> str:
    """Page whose tokens and run name contain markup."""
    summary = Summary("<title>'run'", [("run", "<script>alert(3)</script>")], note="<i>note")
    return page(summary, [sequence(HOSTILE, [0.0, -0.5, 0.5, 2.0, -2.0, 1.0, -1.0], role="<em>")])


def test_markup_in_the_data_is_shown_as_text(hostile_page: str) -> None:
    seen = Page(hostile_page)
    assert [text for _, text in seen.tokens] == [*HOSTILE[:-1], "a↵\nb"]
    assert {tag for tag, _ in seen.elements} & {"script", "b", "i", "em"} == set()
    assert {name for _, attributes in seen.elements for name in attributes if name.startswith("on")} == set()
    assert seen.open == []


def test_the_page_loads_no_external_resource(hostile_page: str) -> None:
    seen = Page(hostile_page)
    outside = {"src", "srcset", "data", "action", "style"}
    assert [a["href"] for _, a in seen.elements if not a.get("href", "#").startswith("#")] == []
    assert {tag for tag, _ in seen.elements} & {"link", "img", "iframe", "object", "script", "base"} == set()
    assert {name for _, attributes in seen.elements for name in attributes} & outside == set()
    (style,) = re.findall(r"<style>(.*?)</style>", hostile_page, re.S)
    assert not re.search(r"url\(|@import|@font-face", style)
    policy = next(a["content"] for tag, a in seen.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_colour_shows_sign_and_size_and_a_mark_shows_the_exceeded_bound(hostile_page: str) -> None:
    marks = [attributes["class"] for attributes, _ in Page(hostile_page).tokens]
    assert marks == ["t prompt", "t z", "t b5", "t r5", "t r10 high", "t b10 low", "t r10", "t b10"]


def test_every_shade_has_a_css_rule_and_a_clamped_token_also_has_a_line(hostile_page: str) -> None:
    rules = dict(re.findall(r"\.(\w+) \{([^}]*)\}", hostile_page))
    assert {f"{side}{shade}" for side in "br" for shade in range(1, 11)} <= rules.keys()
    assert rules["b10"] != rules["r10"]
    assert "border-top: 4px" in rules["high"]  # outside the letters
    assert "border-bottom: 4px" in rules["low"]


def test_the_sums_before_and_after_the_clamp_are_those_of_the_tokens() -> None:
    seen = Page(page(Summary("run", []), [sequence(["p", "a", "b", "c"], [2.0, -0.5, -3.0])]))
    assert "sum of log-ratios -1.5000 nats, after the clamp -0.5000; reward β·R +0.2500" in seen.text
    assert "clamped 2 of 3 tokens (1 below, 1 above)" in seen.text


def test_rounding_gets_no_colour() -> None:
    seen = sequence(["p", "a"], [1e-7])
    assert scale_of([seen]) == 0.01
    assert 'class="t z"' in page(Summary("run", []), [seen])


def test_bytes_of_a_character_are_shown_at_the_token_that_completes_it() -> None:
    class Bytes:
        """Tokenizer with one token per UTF-8 byte."""

        def decode(self, ids: list[int], **_: bool) -> str:
            return bytes(ids).decode(errors="replace")

        def convert_ids_to_tokens(self, token: int) -> str:
            return f"<{token}>"

    assert texts_of(Bytes(), list("aé!".encode())) == ["a", "�", "é", "!"]


# Moving through the page


def sequences() -> list[ScoredSequence]:
    """Three sequences of two examples, with tokens 2, 0 and 1 clamped."""
    ratios = [0.5, 2.0, -2.0], [0.1, 0.2, 0.3], [0.0, 3.0, 0.0]
    made = [sequence(["p", "a", "b", "c"], log_ratios) for log_ratios in ratios]
    return [replace(s, example=example) for s, example in zip(made, (7, 7, 9), strict=True)]


def test_the_index_links_to_every_example_with_its_number_of_clamped_tokens() -> None:
    text = page(Summary("run", []), sequences())
    links = re.findall(r'<li><a href="#([\w-]+)">(.*?)</a>', text)
    assert links == [("example-0", "example 7: 2 clamped"), ("example-1", "example 9: 1 clamped")]
    assert re.findall(r'<section id="([\w-]+)">\s*<h2>Example (\d+)', text) == [("example-0", "7"), ("example-1", "9")]


def test_every_clamped_token_links_to_the_next_and_the_last_one_to_the_first() -> None:
    seen = Page(page(Summary("run", []), sequences()))
    ids = [a["id"] for a, _ in seen.tokens if {"low", "high"} & set(a["class"].split())]
    assert ids == ["clamped-1", "clamped-2", "clamped-3"]
    links = [a["href"] for _, a in seen.elements if a.get("class") == "next"]
    assert links == ["#clamped-2", "#clamped-3", "#clamped-1"]
    assert [a for a, _ in seen.tokens if "id" in a and "tabindex" not in a] == []  # a link moves the focus there


def test_every_link_of_the_page_has_a_target() -> None:
    for shown in (sequences(), [sequence(["p", "a"], [0.0])]):
        seen = Page(page(Summary("run", []), shown))
        assert {a["href"][1:] for _, a in seen.elements if "href" in a} <= {a.get("id") for _, a in seen.elements}
    assert "No token is clamped." in seen.text


def luminance(color: tuple[int, ...]) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in color)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_is_legible_on_every_shade_in_light_and_in_dark() -> None:
    """A contrast of 4.5 is the bound of WCAG 2.2, level AA."""
    light, dark = style().split("@media (prefers-color-scheme: dark)")
    for scheme in (light, dark):
        ink, paper = (tuple(bytes.fromhex("".join(2 * c if len(v) == 3 else c for c in v))) for v in inks(scheme))
        shades = [tuple(map(int, rgb.split(", "))) for rgb in re.findall(r"rgb\(([^)]*)\)", scheme)]
        assert len(shades) == 20
        for shade in [*shades, paper]:
            low, high = sorted((luminance(ink), luminance(shade)))
            assert (high + 0.05) / (low + 0.05) >= 4.5


def inks(scheme: str) -> tuple[str, str]:
    """Return the colours of text and background as hexadecimal digits."""
    found = re.search(r"--ink: #(\w+); --paper: #(\w+)", scheme)
    assert found
    return found[1], found[2]


# In a browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH: what a browser makes of the page was not tried")
def test_a_browser_shows_markup_in_the_data_as_text(hostile_page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(hostile_page, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = [str(CHROMIUM), *options, (tmp_path / "page.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True).stdout
    assert "it&#x27;s" in hostile_page
    assert "it's" in dom  # a parser has read and rewritten it
    seen = Page(dom)
    assert [text for _, text in seen.tokens] == [*HOSTILE[:-1], "a↵\nb"]
    assert {tag for tag, _ in seen.elements} & {"script", "b", "i", "em"} == set()


FRAME = """<!DOCTYPE html><meta charset="utf-8"><title>none</title>
<iframe id="frame" src="page.html#clamped-1" style="width:{width}px; height:800px; border:0"></iframe>
<script>
onload = () => {{
  const seen = frame.contentDocument, first = seen.activeElement.id, root = seen.scrollingElement;
  seen.querySelector("#clamped-1 + a").click();
  setTimeout(() => document.title = JSON.stringify({{
    first, next: seen.activeElement.id, width: root.scrollWidth, room: root.clientWidth,
    dark: frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches,
    background: frame.contentWindow.getComputedStyle(seen.body).backgroundColor,
  }}), 100);
}}
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH: what a browser makes of the page was not tried")
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1200, False)])
def test_a_browser_fits_the_page_to_its_width_and_scheme_and_moves_the_focus(
    tmp_path: Path, width: int, dark: bool
) -> None:
    facts = [("run", "/a/long/path/" * 12), ("data", "x" * 200)]
    long = replace(sequences()[0], texts=["p" * 300, "a" * 300, "b", "c"])
    (tmp_path / "page.html").write_text(page(Summary("t" * 90, facts), [long, *sequences()]), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command = [str(CHROMIUM), *options, (tmp_path / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True).stdout
    found = json.loads(re.search(r"<title>(.*?)</title>", dom)[1])
    assert found["width"] <= found["room"] <= width  # nothing reaches beyond it
    assert (found["first"], found["next"]) == ("clamped-1", "clamped-2")
    assert found["dark"] == dark
    assert found["background"] == ("rgb(22, 24, 28)" if dark else "rgb(255, 255, 255)")
