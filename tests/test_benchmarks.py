"""The benchmark's cases, run by pytest-benchmark, and its command.

``pytest tests/test_benchmarks.py`` times them at toy size; ``python -m benchmarks`` at a real one.
"""

from dataclasses import replace

import pytest
import torch

from benchmarks.__main__ import compare, main
from benchmarks.cases import CASES, Case, make_batch
from benchmarks.measure import peak_bytes, relative_error
from benchmarks.results import ROOT, Row, fill_in, read_csv, write_csv

CPU = torch.device("cpu")
SHAPE = (4, 8, 500)


@pytest.mark.parametrize("provider", ["eager, as HALOs", "humanline_fused"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_provider_gives_the_oracle_s_answer(benchmark, case, provider):
    batch = make_batch(*SHAPE, torch.float32, CPU)
    loss, dlogits = benchmark(case.providers()[provider], batch)
    oracle_loss, oracle_dlogits = case.oracle(batch)
    epsilon = torch.finfo(torch.float32).eps
    assert relative_error(loss, oracle_loss) < 16 * epsilon  # a sum of 8 log-ratios whose terms are larger than it
    assert relative_error(dlogits, oracle_dlogits) < 16 * epsilon


def test_a_wrong_answer_gets_no_time():
    class Wrong(Case):
        def providers(self):
            right = super().providers()
            return {**right, "wrong": lambda batch: right["humanline_fused"](replace(batch, logits=batch.logits * 2))}

    rows = compare(Wrong("dpo", "dpo", {"beta": 0.1}), SHAPE, CPU, repeats=2)
    assert [row.ms_median is None for row in rows] == [False, False, True]


def test_a_wrong_baseline_gets_no_time_either():
    class Wrong(Case):
        def providers(self):
            (name, right), *others = super().providers().items()
            return {name: lambda batch: right(replace(batch, logits=batch.logits * 3)), **dict(others)}

    rows = compare(Wrong("dpo", "dpo", {"beta": 0.1}), SHAPE, CPU, repeats=2)
    assert [row.ms_median is None for row in rows] == [True, False]


def test_peak_memory_is_what_was_held_at_once():
    def call():
        first = torch.empty(2**20, dtype=torch.int8)
        del first
        second = torch.empty(2**21, dtype=torch.int8)
        third = torch.empty(2**20, dtype=torch.int8)
        return second, third

    assert peak_bytes(call, CPU) == 3 * 2**20


def test_the_command_prints_one_table_and_says_that_the_interpreter_is_not_timed(capsys):
    main(["--shape", "4", "8", "500", "--repeats", "2"])
    out = capsys.readouterr().out
    assert sum(line.startswith(("dpo", "kto", "grpo")) for line in out.splitlines()) == 6
    if not torch.cuda.is_available():
        assert "the Triton kernels are not timed" in out


def test_what_was_measured_is_read_back_as_it_was_written(tmp_path):
    rows = [Row("dpo", "a, b", 1.0, 2.5, 3.0, 4.0, 1e-7, 2e-7), Row("dpo", "wrong", None, None, None, None, 0.5, 0.5)]
    write_csv(tmp_path / "figures.csv", {"machine": "one: with a colon", "shape": "B=1"}, rows)
    assert read_csv(tmp_path / "figures.csv") == ({"machine": "one: with a colon", "shape": "B=1"}, rows)


def test_the_tables_of_the_readme_are_those_of_the_files_they_name():
    readme = (ROOT / "README.md").read_text()
    assert "<!-- benchmarks: benchmarks/results/" in readme
    assert fill_in(readme) == readme
