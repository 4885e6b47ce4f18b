"""Tables of text: each line has a cell for every heading."""

from collections.abc import Sequence

Line = dict[str, str]


def columns(lines: Sequence[Line]) -> str:
    """For a terminal."""
    table = _with_header(lines)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in table)


def piped(lines: Sequence[Line]) -> str:
    """For a document in Markdown."""
    header, *cells = _with_header(lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *cells])


def filled(lines: Sequence[Line]) -> list[Line]:
    """Without the columns that are empty in all of them."""
    return [{name: cell for name, cell in line.items() if any(other[name] for other in lines)} for line in lines]


def percent_range(values: tuple[float, float, float], form: str) -> str:
    """A median beside its 20th and 80th percentile."""
    low, median, high = (format(value, form) for value in values)
    return f"{median} ({low}-{high})"


def _with_header(lines: Sequence[Line]) -> list[list[str]]:
    return [list(lines[0]), *(list(line.values()) for line in lines)] if lines else [[]]
