"""The token page shows colours, marks and sums, and escapes all data."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from humanline_fused.looking.page import Summary, page, scale_of
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
    outside = {"src", "href", "srcset", "data", "action", "style"}
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
    assert "inset 0 4px" in rules["high"]
    assert "inset 0 -4px" in rules["low"]


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
