"""Parser for the page of `humanline show`."""

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Parsed page: elements with their attributes, open elements, and the text of each token."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tokens: list[tuple[dict[str, str], str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if "t" in attributes.get("class", "").split():
            self.tokens.append((attributes, ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)
        if self.open[-2:] == ["p", "span"] and self.tokens:
            attributes, text = self.tokens.pop()
            self.tokens.append((attributes, text + data))

    @property
    def scored(self) -> list[dict[str, float]]:
        """Return the numbers of the scored tokens, in order."""
        tip = r"id (\d+) · log π (\S+) · log ref (\S+) · log-ratio (\S+) nats"
        found = [re.search(tip, attributes["data-tip"]) for attributes, _ in self.tokens]
        names = ("id", "logp", "ref_logp", "log_ratio")
        return [dict(zip(names, map(float, match.groups()), strict=True)) for match in found if match]

    @property
    def clamped(self) -> int:
        return sum(bool({"low", "high"} & set(attributes["class"].split())) for attributes, _ in self.tokens)

    @property
    def text(self) -> str:
        return " ".join(self.texts)
