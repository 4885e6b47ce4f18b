"""``python -m benchmarks data``: readings of the preparation of data, and their tables."""

from pathlib import Path

import pytest

from benchmarks import preparation
from benchmarks.preparation import BASE, OURS, WAYS, Preparation, lines, markdown, reading, summaries
from benchmarks.results import write


def row(way: str, turn: int, seconds: float, kept: float = 1.0) -> Preparation:
    return Preparation(way, turn, 100, 600.0, seconds, 2 * seconds, kept, 1.5)


def test_every_way_gives_the_same_number_of_tokens(monkeypatch: pytest.MonkeyPatch):
    small = preparation.vocabulary(preparation.random.Random(0))
    monkeypatch.setattr(preparation, "vocabulary", lambda generator: small)
    monkeypatch.setattr(preparation, "WARM_UP", 2)
    readings = [reading(way, 0, 6) for way in WAYS]
    assert len({one.tokens for one in readings}) == 1
    assert all(one.seconds > 0 for one in readings)


def test_a_way_is_the_median_of_its_turns_and_the_goals_compare_ways():
    rows = [row(BASE, turn, seconds) for turn, seconds in enumerate((1.0, 9.0, 2.0))]
    rows += [row(OURS, turn, 0.5, kept=1.4) for turn in range(3)]
    assert summaries(rows)[BASE].pairs_per_s == 50
    assert summaries(rows)[BASE].cpu_ms == 40
    speed, memory = lines(rows)[1]
    assert (speed["measured"], speed[""]) == ("4.00", "met")
    assert (memory["measured"], memory[""]) == ("1.40", "missed")


def test_the_table_says_where_its_figures_come_from(tmp_path: Path):
    file = tmp_path / "data.csv"
    facts = {"machine": "a machine", "transformers": "5.0", "tokenizers": "0.1"}
    write(file, Preparation, facts, [row(BASE, 0, 1.0), row(OURS, 0, 0.2)])
    table = markdown(file, "data.csv")
    assert "| humanline, a thread per core | 500 | 4.00 |" in table
    source = "`data.csv`: a machine; transformers 5.0; tokenizers 0.1; 100 pairs of 600 tokens on average"
    assert table.endswith(f"{source}, medians of 1 processes each.")
