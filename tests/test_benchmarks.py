"""The benchmark's cases, run by pytest-benchmark, and its commands.

``pytest tests/test_benchmarks.py`` times them at toy size; ``python -m benchmarks run`` at a real one.
"""

import functools
import importlib.util
import itertools
import operator
import sys
import zipfile
from dataclasses import replace

import pytest
import torch

from benchmarks.batches import Batch, make_batch
from benchmarks.kernels import oracle as oracle_module
from benchmarks.kernels.cases import LOGITS_CASES, Case
from benchmarks.kernels.compare import CHECKED, HOST_BOUND, VALUE_LIMIT, WRONG, compare, gradient_limit
from benchmarks.kernels.figures import Row
from benchmarks.kernels.oracle import Oracle
from benchmarks.kernels.providers import PROVIDERS, Provider, available
from benchmarks.measure import Call, interleaved_times, peak_bytes
from benchmarks.peers.halos import loss_on_log_probs
from benchmarks.peers.installed import installed_obstacle, use_wheels

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
        for case in LOGITS_CASES.values()
        for mode in case.modes
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
    assert gradient_error is None or gradient_error < gradient_limit(case, batch)


@pytest.mark.parametrize("case", LOGITS_CASES.values(), ids=lambda case: case.name)
def test_the_oracle_of_a_few_rows_at_a_time_is_that_of_the_whole_in_float64(case, monkeypatch):
    monkeypatch.setitem(oracle_module.CHUNK_BYTES, "cpu", 3 * 8 * SHAPE[-1])
    batch = small_batch()
    oracle = Oracle(case, "full", batch)
    logits = batch.logits.double().requires_grad_()
    whole = replace(batch.to(torch.float64), logits=logits)
    value = _halos_in_float64(case, logits, whole)
    (dlogits,) = torch.autograd.grad(value, logits, case.upstream(value, whole))
    value_error, gradient_error = oracle.errors((value.detach(), (dlogits,)))
    assert value_error < 1e3 * torch.finfo(torch.float64).eps
    assert gradient_error is not None
    assert gradient_error < 1e3 * torch.finfo(torch.float64).eps


def _halos_in_float64(case: Case, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    def log_probs(logits: torch.Tensor) -> torch.Tensor:
        capped = case.softcap * (logits / case.softcap).tanh() if case.softcap else logits
        return capped.log_softmax(-1).gather(-1, batch.target_ids[..., None])[..., 0] * batch.loss_mask

    logp = log_probs(logits)
    return loss_on_log_probs(case, logp, log_probs(batch.ref_logits), batch) if case.has_reference else logp


def test_the_floor_is_what_counts_read_and_dlogits_written_whole():
    batch = small_batch()
    counted, every, row_bytes = int(batch.loss_mask.sum()), 32, 4 * 500
    assert 0 < counted < every
    assert LOGITS_CASES["logp"].floor("nograd", batch)["floor_bytes"] == counted * row_bytes
    assert LOGITS_CASES["dpo"].floor("full", batch)["floor_bytes"] == (3 * counted + every) * row_bytes
    assert LOGITS_CASES["grpo_one_launch"].floor("full", batch)["floor_bytes"] == (2 * counted + every) * row_bytes


def test_no_sequence_s_last_row_counts_because_a_causal_model_has_no_target_for_it():
    assert make_batch(*SHAPE, torch.float32, CPU, masked=0).loss_mask.sum(-1).tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize("key", ["halos", "ours"])
def test_a_wrong_answer_gets_no_time(key):
    right = [provider_of("halos"), provider_of("ours")]

    def of_doubled_logits(provider: Provider) -> Provider:
        def value(case, batch):
            return provider.value(case, replace(batch, logits=batch.logits * 2))

        return replace(provider, value=value)

    wrong = [of_doubled_logits(p) if p.key == key else p for p in right]
    rows = compare(LOGITS_CASES["dpo"], "full", small_batch(), wrong, repeats=2)
    assert [row.note for row in rows] == [WRONG if p.key == key else "" for p in right]
    assert [row.ms_median is None for row in rows] == [p.key == key for p in right]


def test_a_wrong_gradient_under_a_right_value_is_a_wrong_answer():
    ours = provider_of("ours")

    def detached_in_part(case, batch):
        logits = batch.logits
        return ours.value(case, replace(batch, logits=logits / 2 + logits.detach() / 2))

    (row,) = compare(LOGITS_CASES["logp"], "full", small_batch(), [replace(ours, value=detached_in_part)], repeats=2)
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
            value, (dlogits,) = super().answer(case, mode, batch)
            tampered = tamper(dlogits, batch.target_ids)
            of_the_whole = (tampered.double() - dlogits.double()).norm() / dlogits.double().norm()
            assert of_the_whole < gradient_limit(LOGITS_CASES[name], batch)
            return value, (tampered,)

    ours = provider_of("ours")
    right, tampered = compare(LOGITS_CASES[name], "full", batch, [ours, Tampered(**vars(ours))], repeats=2)
    assert (right.note, tampered.note) == ("", WRONG)
    assert right.ms_median is not None
    assert tampered.ms_median is None


def test_what_raises_is_noted_and_the_others_are_still_measured():
    def fails(case, batch):
        try:
            raise MemoryError("no room for it\nat all")
        except MemoryError as error:
            raise RuntimeError("a kernel failed") from error

    providers = [replace(provider_of("halos"), value=fails), provider_of("ours")]
    rows = compare(LOGITS_CASES["kto"], "nograd", small_batch(), providers, repeats=2)
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
    rows = compare(LOGITS_CASES["dpo"], "full", small_batch(), [exhausted, provider_of("ours")], repeats=2)
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
    assert (
        replace(ROW, ms_20=1, ms_median=2, ms_80=3, note=HOST_BOUND).cells()["ms, median (20-80 %)"]
        == "2.00 (1.00-3.00), host-bound"
    )
    assert replace(ROW, note=WRONG).cells()["ms, median (20-80 %)"] == WRONG


def test_what_the_interpreter_computes_is_checked_and_not_timed():
    checked = replace(provider_of("ours"), timed=False)
    (row,) = compare(LOGITS_CASES["grpo"], "full", small_batch(), [checked], repeats=2)
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
    from benchmarks.kernels.traffic import TILES, bare_traffic

    batch = make_batch(2, 4, 320, dtype, device)
    num_words = int(batch.loss_mask.sum()) * 320 * dtype.itemsize // 4
    words = batch.logits.view(torch.int32).flatten()
    if name == "grpo_one_launch":
        words = words ^ batch.ref_logits.view(torch.int32).flatten()
    calls = bare_traffic(LOGITS_CASES[name], "full", batch)
    assert len(calls) == len(TILES)
    for call in calls:
        written = call()
        assert torch.equal(written[:num_words], words[:num_words])
        assert written[num_words:].eq(0).all()
        assert len(written) == batch.logits.numel() * dtype.itemsize // 4


@pytest.mark.parametrize("name", ["logp", "dpo"])
def test_the_ceiling_of_a_forward_reads_every_row_that_counts_of_every_model(name, device):
    from benchmarks.kernels.traffic import bare_traffic

    batch = make_batch(2, 4, 320, torch.float32, device)
    num_words = int(batch.loss_mask.sum()) * 320
    models = [batch.logits, batch.ref_logits][: 2 if name == "dpo" else 1]
    words = torch.cat([model.view(torch.int32).flatten()[:num_words] for model in models])
    for call in bare_traffic(LOGITS_CASES[name], "nograd", batch):
        assert _xor(call()) == _xor(words)


def _xor(words: torch.Tensor) -> int:
    return functools.reduce(operator.xor, words.tolist())
