"""``python -m benchmarks run`` and ``report``: rows, the files that keep them, and the tables made of those."""

from dataclasses import replace

import pytest
import torch

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.kernels.compare import CHECKED, WRONG
from benchmarks.kernels.figures import Row
from benchmarks.kernels.providers import KEYS
from benchmarks.machine import processor
from benchmarks.results import ROOT, read, write

CPU = torch.device("cpu")
SHAPE = (4, 8, 500)
ROW = Row("dpo", "full", "a, b", 4, 8, 500, "float32", 20, floor_bytes=4_000_000)


def test_a_bare_command_prints_one_table_and_says_that_the_interpreter_is_not_timed(capsys):
    main(["--shape", "4", "8", "500", "--repeats", "2"])
    out = capsys.readouterr().out
    timed = [line for line in out.splitlines() if line.startswith(("dpo", "kto", "grpo")) and CHECKED not in line]
    assert len(timed) == 6
    if not torch.cuda.is_available():
        assert "the Triton kernels are not timed" in out


def test_the_run_command_compares_what_it_is_asked_for(capsys, tmp_path):
    csv = tmp_path / "figures.csv"
    asked = ["logp", "--mode", "nograd", "--providers", "halos", "--shape", "2", "4", "50", "--repeats", "2"]
    main(["run", *asked, "--csv", str(csv)])
    facts, rows = read(csv, Row)
    assert [(row.case, row.mode, row.provider) for row in rows] == [("logp", "nograd", "eager, as HALOs")]
    assert {"machine", "torch", "triton", "commit", "command"} <= set(facts)


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (
            "cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\nmodel name\t: B\n",
            "AMD EPYC (family 26, model 2)",
        ),
        ("model name\t: ARMv8\nCPU architecture: 8\n", "ARMv8"),
        ("CPU architecture: 8\n", None),
    ],
)
def test_processors_that_a_virtual_machine_calls_by_one_name_are_told_apart(cpuinfo, name):
    assert processor(cpuinfo) == name


def test_an_unknown_case_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        main(["run", "ppo"])
    assert "got ppo" in capsys.readouterr().err


def test_what_was_measured_is_read_back_as_it_was_written(tmp_path):
    figures = {"ms_20": 1.0, "ms_median": 2.5, "ms_80": 3.0, "peak_mib": 4.0, "value_error": 1e-7}
    rows = [replace(ROW, **figures), replace(ROW, mode="nograd", note=WRONG)]
    facts = {"machine": "one: with a colon", "torch": "2"}
    write(tmp_path / "figures.csv", Row, facts, rows)
    assert read(tmp_path / "figures.csv", Row) == (facts, rows)


def test_bandwidth_is_that_of_the_floor_and_the_ceiling_s_share_that_of_its_time():
    row = replace(ROW, ms_median=2.0, ceiling_ms=1.5)
    assert row.gb_per_s == pytest.approx(2.0)
    assert row.ceiling_share == pytest.approx(0.75)
    assert ROW.ceiling_share is None


def test_keys_name_providers():
    assert KEYS == ("halos", "compile", "trl", "liger", "cce", "torch", "quack", "ours")


def test_a_marker_shows_the_rows_that_its_words_select(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    facts = {"machine": "one", "torch": "2", "triton": "3"}
    write(tmp_path / "one.csv", Row, facts, [ROW, replace(ROW, mode="nograd"), replace(ROW, case="kto")])
    marked = "before\n<!-- benchmarks: one.csv dpo full -->\nold\n<!-- end of benchmarks -->\nafter"
    filled = report.fill_in(marked)
    assert [line.split(" | ")[0] for line in filled.splitlines() if line.startswith("| ")] == [
        "| case",
        "| ---",
        "| dpo",
    ]
    assert filled.startswith("before\n")
    assert filled.endswith("\nafter")
    assert "old" not in filled
    assert report.fill_in(filled) == filled


def test_a_marker_without_a_file_says_that_nothing_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    filled = report.fill_in("<!-- benchmarks: gpu-*.csv -->\n<!-- end of benchmarks -->")
    assert "Not measured yet" in filled


@pytest.mark.parametrize("document", report.DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_of_the_documents_are_those_of_the_files_they_name(document):
    text = document.read_text()
    assert "<!-- benchmarks: " in text
    assert report.fill_in(text) == text
    assert str(ROOT) not in text
