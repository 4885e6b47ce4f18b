"""``python -m benchmarks gpu``: its parts are taken up where they stopped, and end beside the goals."""

import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu
from benchmarks.__main__ import main
from benchmarks.batches import Batch, make_batch
from benchmarks.gpu import SAME, Session, Suite
from benchmarks.kernel_tests import Outcome, outcomes, run_tests, sound
from benchmarks.kernels.cached_rows import GRPO, HEAD, HEAD_IN_TWO, CachedRows, fastest, markdown
from benchmarks.kernels.cases import LOGITS_CASES
from benchmarks.kernels.compare import CHECKED, TWO_LAUNCHES, compare
from benchmarks.kernels.figures import Row
from benchmarks.kernels.kernel_goals import HIDDEN_SIZES, LOGITS_GOALS, judged
from benchmarks.kernels.providers import PROVIDERS, Provider
from benchmarks.machine import MEASURED_CODE, source_hash
from benchmarks.results import read, write

CPU = torch.device("cpu")
SHAPE = (4, 8, 500)
ROW = Row("dpo", "full", "a, b", 4, 8, 500, "float32", 20, floor_bytes=4_000_000)


def small_batch(dtype: torch.dtype = torch.float32) -> Batch:
    return make_batch(*SHAPE, dtype, CPU)


def provider_of(key: str) -> Provider:
    return next(provider for provider in PROVIDERS if provider.key == key)


TOY = ["gpu", "--toy", "--part", "v32000", "--providers", "ours"]


def test_the_gpu_command_runs_to_its_end_at_toy_size_and_takes_up_what_is_missing(tmp_path):
    main([*TOY, "--results", str(tmp_path)])
    (file,) = tmp_path.glob("cpu-toy-*-v32000.csv")
    measured, lines = read(file, Row)[1], file.read_text().splitlines(keepends=True)
    ours = provider_of("ours").cases
    comparisons = [(case.name, mode) for case in LOGITS_CASES.values() for mode in case.modes if case.name in ours]
    comparisons.sort(key=lambda one: one[1] == "nograd")  # gradients first
    assert list(dict.fromkeys((row.case, row.mode) for row in measured)) == comparisons
    checked = [row for row in measured if "interpreter" in row.provider]
    assert [(row.case, row.mode) for row in checked] == comparisons
    assert {row.note for row in checked} == {CHECKED}

    last = sum((row.case, row.mode) == comparisons[-1] for row in measured)
    file.write_text("".join(lines[:-last]))
    main([*TOY, "--results", str(tmp_path)])
    again = file.read_text().splitlines(keepends=True)
    assert again[: len(lines) - last] == lines[:-last]
    assert [(row.case, row.mode) for row in read(file, Row)[1]] == [(row.case, row.mode) for row in measured]


def test_a_part_that_runs_out_of_time_says_so_and_keeps_its_file(tmp_path):
    with pytest.raises(SystemExit):
        main([*TOY, "--results", str(tmp_path), "--minutes", "0"])
    (file,) = tmp_path.glob("*.csv")
    assert read(file, Row)[1] == []


def test_a_part_at_toy_size_has_no_share_and_the_command_no_end():
    session = gpu._session(gpu._options(["--toy"]), toy=True)
    assert (session.shares, session.deadline) == (False, math.inf)


def test_the_shares_of_all_parts_fit_into_the_minutes_of_the_command():
    assert sum(part.minutes for part in gpu.PARTS) <= gpu.MINUTES == 25
    names = [part.name for part in gpu.PARTS]
    assert len(set(names)) == len(names)
    assert names[:4] == ["tests", "cache", "v128256", "head-v128256"]


def test_every_hidden_size_with_a_goal_has_a_part():
    measured = {part.H for part in gpu.PARTS if isinstance(part, Suite) and part.V == 128256}
    assert set(HIDDEN_SIZES) <= measured


def test_a_part_ends_with_its_share_unless_it_was_named():
    now = time.monotonic()
    shared, named = (Session(Path(), {}, CPU, [], 2, deadline=now + 600, shares=one) for one in (True, False))
    assert now + 120 <= shared.until(2) < now + 600
    assert shared.until(20) == named.until(2) == now + 600


def test_the_tests_of_the_kernels_are_counted_and_those_that_fail_named(tmp_path, capsys):
    report = tmp_path / "report.xml"
    cases = [
        '<testcase classname="a" name="one" time="1.5"/>',
        '<testcase classname="a" name="two" time="0.5"/>',
        '<testcase classname="a" name="three" time="0"><skipped/></testcase>',
        '<testcase classname="b" name="four" time="2"><failure/></testcase>',
    ]
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    rows = outcomes(report)
    assert rows == [Outcome("failed", 1, 2.0), Outcome("passed", 2, 2.0), Outcome("skipped", 1, 0.0)]
    assert capsys.readouterr().out == "failed: b::four\n"
    assert not sound(rows)
    assert sound(rows[1:])
    assert not sound(rows[2:])


@pytest.mark.parametrize(("only", "ignored"), [({"markexpr": "gpu"}, [True, None]), ({}, [None, None])])
def test_the_tests_of_a_gpu_import_no_file_that_has_none(pytestconfig, only, ignored):
    """A machine with a GPU has what the kernels' tests need, and perhaps none of TRL and datasets."""
    (ours,) = [one for one in pytestconfig.pluginmanager.get_plugins() if hasattr(one, "KERNEL_TEST")]
    config = SimpleNamespace(getoption=only.get)
    files = [Path(__file__).parent / name for name in ("test_integration_trl.py", "test_losses.py")]
    assert [ours.pytest_ignore_collect(file, config) for file in files] == ignored


def test_tests_that_do_not_end_in_time_have_no_counts(capsys):
    assert run_tests(toy=True, deadline=time.monotonic() - 1) == []
    assert "did not end in time" in capsys.readouterr().out


def test_rows_in_flight_are_tried_and_the_fastest_number_is_marked(tmp_path):
    main(["gpu", "--toy", "--part", "cache", "--results", str(tmp_path)])
    (file,) = tmp_path.glob("cpu-toy-*-cache.csv")
    rows = read(file, CachedRows)[1]
    counts = [4 * eighths for eighths in range(1, 9)]
    assert [row.programs for row in rows] == [*counts, *counts, 6]
    assert [row.launch for row in rows] == [*8 * [GRPO], *8 * [HEAD], HEAD_IN_TWO]
    assert {(row.note, row.ms_median) for row in rows} == {("", None)}  # the interpreter is not timed
    timed = [replace(row, ms_20=ms, ms_median=ms, ms_80=ms) for row, ms in zip(rows, (3, 2, 1, 2), strict=False)]
    assert fastest([*timed, replace(rows[7], note="OutOfMemoryError")], GRPO, rows[0].V) == timed[2]
    assert fastest(timed, HEAD, rows[0].V) is None
    write(file, CachedRows, {"machine": "one", "torch": "2", "triton": "3"}, timed)
    marks = [line.endswith("| fastest |") for line in markdown(file, "f").splitlines()[2:6]]
    assert marks == [False, False, True, False]


def test_a_part_that_fails_does_not_stop_the_next_and_is_not_complete(tmp_path, capsys):
    def fails(session: Session, deadline: float) -> bool:
        raise RuntimeError("a kernel failed")

    session = Session(tmp_path, {}, CPU, [], 2)
    parts = [gpu.Part("one", "", 1, fails), gpu.Part("two", "", 1, lambda session, deadline: True)]
    assert [gpu.is_complete(part, session) for part in parts] == [False, True]
    assert "a kernel failed" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["source", "providers", "repeats"])
def test_a_part_of_other_code_or_providers_or_repeats_is_measured_anew(tmp_path, changed):
    facts = {**dict.fromkeys(SAME, "one"), "machine": "GPU one", "commit": "a-dirty"}

    def file_of(facts: dict[str, str]) -> Path:
        return Session(tmp_path, facts, CPU, [], 2).file("v32000", Row)

    old = file_of(facts)
    write(old, Row, facts, [ROW])
    assert file_of({**facts, "commit": "b"}) == old
    assert read(old, Row)[1] == [ROW]
    new = file_of({**facts, changed: "another"})
    assert read(new, Row)[1] == []


def test_the_source_is_told_apart_by_every_python_file_of_the_measured_code(tmp_path):
    for folder in MEASURED_CODE:
        (tmp_path / folder / "part").mkdir(parents=True)
        (tmp_path / folder / "part" / "one.py").write_text("1")
    seen = {source_hash(tmp_path)}
    for folder in MEASURED_CODE:
        (tmp_path / folder / "part" / "one.py").write_text("2")
        seen.add(source_hash(tmp_path))
    assert len(seen) == 1 + len(MEASURED_CODE)
    (tmp_path / "benchmarks" / "figures.csv").write_text("3")
    assert source_hash(tmp_path) in seen


def test_a_comparison_in_which_somebody_failed_is_measured_again_and_no_other(tmp_path):
    file = tmp_path / "part.csv"
    only = [replace(provider_of("ours"), cases=frozenset({"logp"}))]
    noted = [
        replace(ROW, case="logp", mode="nograd", provider="kept", note=TWO_LAUNCHES),
        replace(ROW, case="logp", mode="full", provider="again", note="OutOfMemoryError: no room for it"),
        replace(ROW, case="logp", mode="full", provider="beside it"),
    ]
    write(file, Row, {"machine": "one"}, noted)
    assert Suite(32000).measure(file, Session(tmp_path, {}, CPU, only, 2, toy=True))
    rows = read(file, Row)[1]
    assert [(row.mode, row.provider, row.note) for row in rows] == [
        ("nograd", "kept", TWO_LAUNCHES),
        ("full", "humanline_fused", ""),
    ]


def test_where_one_launch_would_be_two_nobody_is_timed_and_no_goal_is_judged():
    checked = replace(provider_of("ours"), name="checked", timed=False)
    providers = [provider_of("halos"), provider_of("ours"), checked]
    rows = compare(LOGITS_CASES["grpo_one_launch"], "full", small_batch(), providers, repeats=2)
    assert [(row.provider, row.note) for row in rows] == [("humanline_fused", TWO_LAUNCHES), ("checked", CHECKED)]
    assert all(row.ms_median is None for row in rows)
    verdicts = [line[""] for line in judged(rows, LOGITS_GOALS) if "one launch" in line["goal"]]
    assert verdicts
    assert set(verdicts) == {"not measured"}


def test_one_launch_is_timed_where_the_device_makes_one(monkeypatch):
    monkeypatch.setattr("benchmarks.kernels.compare.fits_one_launch", lambda logits: True)
    rows = compare(LOGITS_CASES["grpo_one_launch"], "full", small_batch(), [provider_of("ours")], repeats=2)
    assert [row.ms_median is None for row in rows] == [False]


def test_goals_are_printed_beside_what_was_measured():
    share = {"ms_20": 1.0, "ms_median": 1.0, "ms_80": 1.0, "peak_mib": 1.005 * ROW.logits_mib}
    rows = [
        replace(ROW, provider="humanline_fused", ceiling_ms=0.95, **share),
        replace(ROW, provider="TRL 1.16.0", ceiling_ms=0.95, **{**share, "ms_median": 1.05}),
    ]
    verdicts = {line["goal"]: (line["measured"], line[""]) for line in judged(rows, LOGITS_GOALS)}
    assert verdicts["DPO, of the ceiling"] == ("95%", "met")
    assert verdicts["DPO, times as fast as TRL's kernel"] == ("1.05", "missed")
    assert verdicts["DPO, times as fast as eager"] == ("", "not measured")
    assert verdicts["DPO, memory beyond dlogits, of one logits tensor"] == ("0.50%", "met")


def test_every_goal_names_a_case_a_mode_and_a_provider_that_exist():
    names = {provider.name for provider in PROVIDERS}
    looked_at = set()

    class Everything(dict):
        def get(self, key, default=None):
            looked_at.add(key)
            return replace(ROW, ms_median=1.0, ceiling_ms=1.0, peak_mib=1.0)

    for goal in LOGITS_GOALS:
        assert goal.figure(Everything()) is not None
    assert all(mode in LOGITS_CASES[case].passes and provider in names for case, mode, provider in looked_at)
