"""The benchmark's cases, run by pytest-benchmark, and its commands.

``pytest tests/test_benchmarks.py`` times them at toy size; ``python -m benchmarks run`` at a real one.
"""

import functools
import importlib.util
import itertools
import math
import operator
import sys
import zipfile
from dataclasses import replace

import pytest
import torch

from benchmarks import goals, gpu, report
from benchmarks import oracle as oracle_module
from benchmarks.__main__ import main
from benchmarks.cases import CASES, Batch, Case, make_batch
from benchmarks.compare import CHECKED, HOST_BOUND, TWO_LAUNCHES, VALUE_LIMIT, WRONG, compare, gradient_limit
from benchmarks.measure import Call, interleaved_times, peak_bytes
from benchmarks.oracle import Oracle
from benchmarks.peers import installed_obstacle, use_wheels
from benchmarks.providers import KEYS, PROVIDERS, Provider, available, upstream
from benchmarks.results import MEASURED_CODE, ROOT, Row, append_rows, read_csv, source_hash, write_csv

CPU = torch.device("cpu")
SHAPE = (4, 8, 500)
ROW = Row("dpo", "full", "a, b", 4, 8, 500, "float32", 20, floor_bytes=4_000_000)


def small_batch(dtype: torch.dtype = torch.float32) -> Batch:
    return make_batch(*SHAPE, dtype, CPU)


def provider_of(key: str) -> Provider:
    return next(provider for provider in PROVIDERS if provider.key == key)


def comparisons() -> list[object]:
    everyone = available(("halos", "ours"), CPU)[0]
    return [
        pytest.param(case, mode, provider, id=f"{case.name}-{mode}-{provider.name}")
        for case in CASES.values()
        for mode in case.passes
        for provider in everyone
        if case.name in provider.cases and provider.timed
    ]


@pytest.mark.parametrize(("case", "mode", "provider"), comparisons())
def test_every_provider_gives_the_oracle_s_answer(benchmark, case, mode, provider):
    batch = small_batch()
    value_error, gradient_error = Oracle(case, mode, batch).errors(
        benchmark(lambda: provider.answer(case, mode, replace(batch, logits=batch.logits.clone())))
    )
    assert value_error < VALUE_LIMIT
    assert (gradient_error is None) == (mode == "nograd")
    assert gradient_error is None or gradient_error < gradient_limit(torch.float32)


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_the_oracle_of_a_few_rows_at_a_time_is_that_of_the_whole_in_float64(case, monkeypatch):
    monkeypatch.setitem(oracle_module.CHUNK_BYTES, "cpu", 3 * 8 * SHAPE[-1])
    batch = small_batch()
    oracle = Oracle(case, "full", batch)
    logits = batch.logits.double().requires_grad_()
    whole = replace(batch.to(torch.float64), logits=logits)
    value = _halos_in_float64(case, logits, whole)
    (dlogits,) = torch.autograd.grad(value, logits, upstream(case, value, whole))
    value_error, gradient_error = oracle.errors((value.detach(), dlogits))
    assert value_error < 1e3 * torch.finfo(torch.float64).eps
    assert gradient_error is not None
    assert gradient_error < 1e3 * torch.finfo(torch.float64).eps


def _halos_in_float64(case: Case, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    from benchmarks.peers import loss_on_log_probs

    def log_probs(logits: torch.Tensor) -> torch.Tensor:
        capped = case.softcap * (logits / case.softcap).tanh() if case.softcap else logits
        return capped.log_softmax(-1).gather(-1, batch.target_ids[..., None])[..., 0] * batch.loss_mask

    logp = log_probs(logits)
    return loss_on_log_probs(case, logp, log_probs(batch.ref_logits), batch) if case.has_reference else logp


def test_the_floor_is_what_counts_read_and_dlogits_written_whole():
    batch = small_batch()
    counted, every, row_bytes = int(batch.loss_mask.sum()), 32, 4 * 500
    assert 0 < counted < every
    assert CASES["logp"].floor_bytes("nograd", batch) == counted * row_bytes
    assert CASES["dpo"].floor_bytes("full", batch) == (3 * counted + every) * row_bytes
    assert CASES["grpo_one_launch"].floor_bytes("full", batch) == (2 * counted + every) * row_bytes


def test_no_sequence_s_last_row_counts_because_a_causal_model_has_no_target_for_it():
    assert make_batch(*SHAPE, torch.float32, CPU, masked=0).loss_mask.sum(-1).tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize("key", ["halos", "ours"])
def test_a_wrong_answer_gets_no_time(key):
    right = [provider_of("halos"), provider_of("ours")]
    wrong = [
        replace(p, value=lambda case, logits, batch, p=p: p.value(case, logits * 2, batch)) if p.key == key else p
        for p in right
    ]
    rows = compare(CASES["dpo"], "full", small_batch(), wrong, repeats=2)
    assert [row.note for row in rows] == [WRONG if p.key == key else "" for p in right]
    assert [row.ms_median is None for row in rows] == [p.key == key for p in right]


def test_a_wrong_gradient_under_a_right_value_is_a_wrong_answer():
    ours = provider_of("ours")

    def detached_in_part(case, logits, batch):
        return ours.value(case, logits / 2 + logits.detach() / 2, batch)

    (row,) = compare(CASES["logp"], "full", small_batch(), [replace(ours, value=detached_in_part)], repeats=2)
    assert row.value_error is not None
    assert row.value_error < 1e-6
    assert row.note == WRONG


def scaled_beside_the_targets(dlogits: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
    targets = target_ids[..., None]
    return (dlogits * 0.8).scatter(-1, targets, dlogits.gather(-1, targets))


def without_the_last_columns(dlogits: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
    beyond = torch.arange(dlogits.shape[-1]) >= 0.96 * dlogits.shape[-1]
    return dlogits.masked_fill(beyond, 0)


@pytest.mark.parametrize("tamper", [scaled_beside_the_targets, without_the_last_columns])
@pytest.mark.parametrize("name", ["logp", "dpo", "grpo"])
def test_a_wrong_gradient_that_the_targets_columns_would_hide_is_a_wrong_answer(name, tamper):
    V = 256_000
    batch = make_batch(2, 3, V, torch.bfloat16, CPU, masked=0)
    batch = replace(batch, target_ids=batch.target_ids % (V // 2))

    class Tampered(Provider):
        def answer(self, case, mode, batch):
            value, dlogits = super().answer(case, mode, batch)
            tampered = tamper(dlogits, batch.target_ids)
            of_the_whole = (tampered.double() - dlogits.double()).norm() / dlogits.double().norm()
            assert of_the_whole < gradient_limit(torch.bfloat16)
            return value, tampered

    ours = provider_of("ours")
    right, tampered = compare(CASES[name], "full", batch, [ours, Tampered(**vars(ours))], repeats=2)
    assert (right.note, tampered.note) == ("", WRONG)
    assert right.ms_median is not None
    assert tampered.ms_median is None


def test_what_raises_is_noted_and_the_others_are_still_measured():
    def fails(case, logits, batch):
        try:
            raise MemoryError("no room for it\nat all")
        except MemoryError as error:
            raise RuntimeError("a kernel failed") from error

    providers = [replace(provider_of("halos"), value=fails), provider_of("ours")]
    rows = compare(CASES["kto"], "nograd", small_batch(), providers, repeats=2)
    assert rows[0].note == "MemoryError: no room for it"
    assert rows[1].ms_median is not None


@pytest.mark.parametrize("call", [2, 3, 5], ids=["warming up", "timed", "for its memory"])
def test_what_raises_after_its_check_loses_its_own_figures_alone(call):
    calls = itertools.count(1)

    class Exhausted(Provider):
        def answer(self, case, mode, batch):
            if next(calls) == call:
                raise torch.OutOfMemoryError("no room for it")
            return super().answer(case, mode, batch)

    exhausted = Exhausted(**vars(provider_of("halos")))
    rows = compare(CASES["dpo"], "full", small_batch(), [exhausted, provider_of("ours")], repeats=2)
    assert [row.note for row in rows] == ["OutOfMemoryError: no room for it", ""]
    assert [row.ms_median is None for row in rows] == [True, False]
    assert [row.peak_mib is None for row in rows] == [True, False]


def test_each_turn_has_an_order_of_its_own_that_the_next_run_repeats():
    def orders() -> list[str]:
        called: list[str] = []
        calls = [Call(functools.partial(called.append, name)) for name in "abcd"]
        interleaved_times(calls, repeats=5, device=CPU)
        return ["".join(called[turn : turn + 4]) for turn in range(0, 24, 4)]

    assert {"".join(sorted(order)) for order in orders()} == {"abcd"}
    assert len(set(orders())) > 1
    assert orders() == orders()


def test_a_row_that_waited_for_the_host_says_so_beside_its_time():
    assert replace(ROW, ms_20=1, ms_median=2, ms_80=3, note=HOST_BOUND).cells()[3] == "2.00 (1.00-3.00), host-bound"
    assert replace(ROW, note=WRONG).cells()[3] == WRONG


def test_what_the_interpreter_computes_is_checked_and_not_timed():
    checked = replace(provider_of("ours"), timed=False)
    (row,) = compare(CASES["grpo"], "full", small_batch(), [checked], repeats=2)
    assert (row.note, row.ms_median, row.peak_mib) == (CHECKED, None, None)
    assert row.gradient_error is not None


def test_a_provider_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    providers, obstacles = available(("compile", "ours"), CPU)
    assert "compile" not in {provider.key for provider in providers}
    assert any("C++ compiler" in obstacle for obstacle in obstacles)


def test_a_folder_of_wheels_stands_in_for_what_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    with zipfile.ZipFile(tmp_path / "peer_of_a_test-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("peer_of_a_test.py", "")
        wheel.writestr("peer_of_a_test-1.0.dist-info/METADATA", "Name: peer-of-a-test\nVersion: 1.0\n")
    assert "not installed" in str(installed_obstacle("peer-of-a-test", "1.0"))
    use_wheels(tmp_path)
    assert installed_obstacle("peer-of-a-test", "1.0") is None
    assert "1.0 is installed" in str(installed_obstacle("peer-of-a-test", "2.0"))
    assert importlib.util.find_spec("peer_of_a_test")


def test_a_folder_without_a_wheel_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no pure-Python wheel"):
        use_wheels(tmp_path)


def test_peak_memory_is_what_was_held_at_once():
    def call():
        first = torch.empty(2**20, dtype=torch.int8)
        del first
        second = torch.empty(2**21, dtype=torch.int8)
        third = torch.empty(2**20, dtype=torch.int8)
        return second, third

    assert peak_bytes(call, CPU) == 3 * 2**20


@pytest.mark.parametrize("name", ["logp", "dpo", "grpo_one_launch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_ceiling_writes_the_policy_where_rows_count_and_zeros_after(name, dtype, device):
    from benchmarks.ceilings import TILES, ceilings

    batch = make_batch(2, 4, 320, dtype, device)
    num_words = int(batch.loss_mask.sum()) * 320 * dtype.itemsize // 4
    words = batch.logits.view(torch.int32).flatten()
    if name == "grpo_one_launch":
        words = words ^ batch.ref_logits.view(torch.int32).flatten()
    calls = ceilings(CASES[name], "full", batch)
    assert len(calls) == len(TILES)
    for call in calls:
        written = call()
        assert torch.equal(written[:num_words], words[:num_words])
        assert written[num_words:].eq(0).all()
        assert len(written) == batch.logits.numel() * dtype.itemsize // 4


@pytest.mark.parametrize("name", ["logp", "dpo"])
def test_the_ceiling_of_a_forward_reads_every_row_that_counts_of_every_model(name, device):
    from benchmarks.ceilings import ceilings

    batch = make_batch(2, 4, 320, torch.float32, device)
    num_words = int(batch.loss_mask.sum()) * 320
    models = [batch.logits, batch.ref_logits][: 2 if name == "dpo" else 1]
    words = torch.cat([model.view(torch.int32).flatten()[:num_words] for model in models])
    for call in ceilings(CASES[name], "nograd", batch):
        assert _xor(call()) == _xor(words)


def _xor(words: torch.Tensor) -> int:
    return functools.reduce(operator.xor, words.tolist())


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
    facts, rows = read_csv(csv)
    assert [(row.case, row.mode, row.provider) for row in rows] == [("logp", "nograd", "eager, as HALOs")]
    assert {"machine", "torch", "triton", "commit", "command"} <= set(facts)


def test_an_unknown_case_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        main(["run", "ppo"])
    assert "got ppo" in capsys.readouterr().err


def test_what_was_measured_is_read_back_as_it_was_written(tmp_path):
    figures = {"ms_20": 1.0, "ms_median": 2.5, "ms_80": 3.0, "peak_mib": 4.0, "value_error": 1e-7}
    rows = [replace(ROW, **figures), replace(ROW, mode="nograd", note=WRONG)]
    facts = {"machine": "one: with a colon", "torch": "2"}
    write_csv(tmp_path / "figures.csv", facts, rows[:1])
    append_rows(tmp_path / "figures.csv", rows[1:])
    assert read_csv(tmp_path / "figures.csv") == (facts, rows)


def test_bandwidth_is_that_of_the_floor_and_the_ceiling_s_share_that_of_its_time():
    row = replace(ROW, ms_median=2.0, ceiling_ms=1.5)
    assert row.gb_per_s == pytest.approx(2.0)
    assert row.ceiling_share == pytest.approx(0.75)
    assert ROW.ceiling_share is None


TOY = ["gpu", "--toy", "--part", "v32000", "--providers", "ours"]


def test_the_gpu_command_runs_to_its_end_at_toy_size_and_takes_up_what_is_missing(tmp_path):
    main([*TOY, "--results", str(tmp_path)])
    (file,) = tmp_path.glob("cpu-toy-*-v32000.csv")
    measured, lines = read_csv(file)[1], file.read_text().splitlines(keepends=True)
    ours = provider_of("ours").cases
    comparisons = [(case.name, mode) for case in CASES.values() for mode in case.passes if case.name in ours]
    assert list(dict.fromkeys((row.case, row.mode) for row in measured)) == comparisons
    checked = [row for row in measured if "interpreter" in row.provider]
    assert [(row.case, row.mode) for row in checked] == comparisons
    assert {row.note for row in checked} == {CHECKED}

    last = sum((row.case, row.mode) == comparisons[-1] for row in measured)
    file.write_text("".join(lines[:-last]))
    main([*TOY, "--results", str(tmp_path)])
    again = file.read_text().splitlines(keepends=True)
    assert again[: len(lines) - last] == lines[:-last]
    assert [(row.case, row.mode) for row in read_csv(file)[1]] == [(row.case, row.mode) for row in measured]


def test_a_part_that_runs_out_of_time_says_so_and_keeps_its_file(tmp_path):
    with pytest.raises(SystemExit):
        main([*TOY, "--results", str(tmp_path), "--minutes", "0"])
    (file,) = tmp_path.glob("*.csv")
    assert read_csv(file)[1] == []


@pytest.mark.parametrize("changed", ["source", "providers", "repeats"])
def test_a_part_of_other_code_or_providers_or_repeats_is_measured_anew(tmp_path, changed):
    facts = {**dict.fromkeys(gpu.SAME, "one"), "commit": "a-dirty"}
    part = gpu.PARTS[0]
    old = gpu.part_file(tmp_path, part, facts, "GPU one")
    append_rows(old, [ROW])
    assert gpu.part_file(tmp_path, part, {**facts, "commit": "b"}, "GPU one") == old
    assert read_csv(old)[1] == [ROW]
    new = gpu.part_file(tmp_path, part, {**facts, changed: "another"}, "GPU one")
    assert read_csv(new)[1] == []


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
    part, file = gpu.PARTS[0], tmp_path / "part.csv"
    only = [replace(provider_of("ours"), cases=frozenset({"logp"}))]
    noted = [
        replace(ROW, case="logp", mode="nograd", provider="kept", note=TWO_LAUNCHES),
        replace(ROW, case="logp", mode="full", provider="again", note="OutOfMemoryError: no room for it"),
        replace(ROW, case="logp", mode="full", provider="beside it"),
    ]
    write_csv(file, {"machine": "one"}, noted)
    assert gpu.measure(part, file, only, 2, CPU, toy=True, deadline=math.inf)
    rows = read_csv(file)[1]
    assert [(row.mode, row.provider, row.note) for row in rows] == [
        ("nograd", "kept", TWO_LAUNCHES),
        ("full", "humanline_fused", ""),
    ]


def test_where_one_launch_would_be_two_nobody_is_timed_and_no_goal_is_judged():
    checked = replace(provider_of("ours"), name="checked", timed=False)
    providers = [provider_of("halos"), provider_of("ours"), checked]
    rows = compare(CASES["grpo_one_launch"], "full", small_batch(), providers, repeats=2)
    assert [(row.provider, row.note) for row in rows] == [("humanline_fused", TWO_LAUNCHES), ("checked", CHECKED)]
    assert all(row.ms_median is None for row in rows)
    judged = [line[-1] for line in goals.table(rows) if "one launch" in line[0]]
    assert judged
    assert set(judged) == {"not measured"}


def test_one_launch_is_timed_where_the_device_makes_one(monkeypatch):
    monkeypatch.setattr("benchmarks.compare.fits_one_launch", lambda logits: True)
    rows = compare(CASES["grpo_one_launch"], "full", small_batch(), [provider_of("ours")], repeats=2)
    assert [row.ms_median is None for row in rows] == [False]


def test_goals_are_printed_beside_what_was_measured():
    share = {"ms_20": 1.0, "ms_median": 1.0, "ms_80": 1.0, "peak_mib": 1.005 * ROW.logits_mib}
    rows = [
        replace(ROW, provider="humanline_fused", ceiling_ms=0.95, **share),
        replace(ROW, provider="TRL 1.16.0", ceiling_ms=0.95, **{**share, "ms_median": 1.05}),
    ]
    verdicts = {name: (measured, verdict) for name, _, _, measured, _, verdict in goals.table(rows)}
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

    for goal in goals.GOALS:
        assert goal.figure(Everything()) is not None
    assert all(mode in CASES[case].passes and provider in names for case, mode, provider in looked_at)


def test_keys_name_providers():
    assert KEYS == ("halos", "compile", "trl", "liger", "ours")


def test_a_marker_shows_the_rows_that_its_words_select(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    facts = {"machine": "one", "torch": "2", "triton": "3"}
    write_csv(tmp_path / "one.csv", facts, [ROW, replace(ROW, mode="nograd"), replace(ROW, case="kto")])
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
    assert "<!-- benchmarks: benchmarks/results/" in text
    assert report.fill_in(text) == text
    assert str(ROOT) not in text
