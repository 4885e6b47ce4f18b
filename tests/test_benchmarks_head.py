"""The benchmark's cases on hidden states: answers, floors, ceilings, goals and the two commands, at toy size."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.__main__ import main
from benchmarks.batches import HeadBatch, make_head_batch
from benchmarks.kernels import kernel_goals
from benchmarks.kernels.cases import CASES, HEAD_CASES
from benchmarks.kernels.ceilings import Least, bare_products
from benchmarks.kernels.compare import (
    APPROXIMATE,
    CHECKED,
    WRONG,
    compare,
    final,
    gradient_limit,
    least_ms,
    value_limit,
)
from benchmarks.kernels.figures import Row
from benchmarks.kernels.oracle import Oracle
from benchmarks.kernels.providers import (
    LIGER_CUTE,
    PROVIDERS,
    QUACK_CHUNKED,
    QUACK_EPILOGUE,
    Provider,
    available,
)
from benchmarks.measure import Times
from benchmarks.peers import cute
from benchmarks.peers.halos import loss_on_log_probs
from benchmarks.results import read

CPU = torch.device("cpu")
SHAPE = (4, 6, 300, 64)
GIVEN = "hidden dpo given, time over the bare products"
COMPARISONS = [(case, mode) for case in HEAD_CASES.values() for mode in case.modes]
NAMES = [f"{case.name}-{mode}" for case, mode in COMPARISONS]


def small_batch(dtype: torch.dtype = torch.float32) -> HeadBatch:
    return make_head_batch(*SHAPE, dtype, CPU)


def provider_of(key: str) -> Provider:
    return next(provider for provider in PROVIDERS if provider.key == key and "head_dpo" in provider.cases)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("case", "mode"), COMPARISONS, ids=NAMES)
def test_ours_and_the_materialising_path_give_the_oracle_s_answer(case, mode, dtype):
    batch = case.inputs(small_batch(dtype)).exact()
    oracle = Oracle(case, mode, batch)
    for key in ("halos", "ours"):
        value_error, gradient_error = oracle.errors(provider_of(key).answer(case, mode, batch))
        assert value_error < value_limit(case, batch)
        assert (gradient_error is None) == (mode == "nograd")
        assert gradient_error is None or gradient_error < gradient_limit(case, batch)


@pytest.mark.parametrize("case", HEAD_CASES.values(), ids=lambda case: case.name)
def test_the_oracle_of_a_few_rows_at_a_time_is_that_of_the_whole_in_float64(case, monkeypatch):
    monkeypatch.setitem(Oracle.__init__.__globals__["CHUNK_BYTES"], "cpu", 3 * 8 * SHAPE[2])
    batch = case.inputs(small_batch())
    hidden, weight = (tensor.double().requires_grad_() for tensor in (batch.hidden, batch.weight))

    def log_probs(logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1).gather(-1, batch.target_ids[..., None])[..., 0] * batch.loss_mask

    value = log_probs(hidden @ weight.T)
    if case.has_reference:
        inside = log_probs(batch.ref_hidden.double() @ batch.ref_weight.double().T)
        value = loss_on_log_probs(case, value, batch.ref_logp.double() if case.given else inside, batch)
    value = -value.sum() / batch.counted if case.mean else value
    gradients = torch.autograd.grad(value, (hidden, weight), case.upstream(value, batch))
    value_error, gradient_error = Oracle(case, "full", batch).errors((value.detach(), gradients))
    assert value_error < 1e3 * torch.finfo(torch.float64).eps
    assert gradient_error is not None
    assert gradient_error < 1e3 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("H", [64, 512, 4096])
def test_what_is_compared_has_logits_that_bfloat16_holds(H):
    batch = make_head_batch(2, 4, 300, H, torch.bfloat16, CPU).exact()
    logits = batch.hidden.double() @ batch.weight.double().T
    assert torch.equal(logits.bfloat16().double(), logits)
    assert logits.unique().numel() > 10


def test_a_peaked_row_gives_its_target_more_than_a_random_one():
    batch = make_head_batch(2, 8, 300, 256, torch.float32, CPU)
    assert batch.peaked().ref_logp[batch.loss_mask].mean() > batch.ref_logp[batch.loss_mask].mean() + 3


@pytest.mark.parametrize("name", ["hidden", "weight"])
def test_a_wrong_gradient_under_a_right_value_is_a_wrong_answer(name):
    ours = provider_of("ours")

    def detached_in_part(case, batch):
        tensor = getattr(batch, name)
        return ours.value(case, replace(batch, **{name: 0.95 * tensor + 0.05 * tensor.detach()}))

    wrong = replace(ours, value=detached_in_part)
    (row,) = compare(HEAD_CASES["head_dpo_given"], "full", small_batch(), [wrong], repeats=2)
    assert row.value_error is not None
    assert row.value_error < value_limit(HEAD_CASES["head_dpo_given"], small_batch())
    assert (row.note, row.ms_median) == (WRONG, None)


def test_a_wrong_gradient_of_the_rows_that_nobody_targets_is_a_wrong_answer():
    class Tampered(Provider):
        def answer(self, case, mode, batch):
            value, (dhidden, dweight) = super().answer(case, mode, batch)
            targeted = torch.zeros(len(dweight), 1, dtype=torch.bool)
            targeted[batch.target_ids[batch.loss_mask]] = True
            return value, (dhidden, torch.where(targeted, dweight, 0.9 * dweight))

    tampered = Tampered(**vars(provider_of("ours")))
    (row,) = compare(HEAD_CASES["head_grpo_given"], "full", small_batch(torch.bfloat16), [tampered], repeats=2)
    assert row.note == WRONG


def test_a_frozen_head_gets_no_gradient_and_a_trained_one_does():
    case, batch = HEAD_CASES["head_dpo"], small_batch()
    leaves = {mode: case.leaves(mode, batch) for mode in ("frozen", "full")}
    assert [tensor.shape for tensor in leaves["frozen"][1]] == [batch.hidden.shape]
    assert not leaves["frozen"][0].weight.requires_grad
    assert [tensor.shape for tensor in leaves["full"][1]] == [batch.hidden.shape, batch.weight.shape]


@pytest.mark.parametrize(("case", "mode"), COMPARISONS, ids=NAMES)
def test_the_ceiling_s_products_are_the_floor_s_flops(case, mode):
    batch = small_batch()
    B, T, V, H = SHAPE
    counted = int(batch.loss_mask.sum())
    assert 0 < counted < B * T
    parts = bare_products(case, mode, batch)
    with FlopCounterMode(display=False) as counter:
        for part in parts:
            for _ in range(part.times):
                part.ways[0]()
    assert (
        counter.get_total_flops() == case.floor(mode, batch)["floor_flops"] == case.products[mode] * 2 * counted * V * H
    )


def test_the_ceiling_is_each_product_in_its_fastest_way():
    parts = [Least([lambda: torch.empty(0)] * 3, times=2), Least([lambda: torch.empty(0)] * 2)]
    taken = [Times(ms, ms, ms) for ms in (5.0, 3.0, 4.0, 1.0)]
    assert least_ms(parts, [*taken, "RuntimeError: no room"]) == 2 * 3 + 1
    assert least_ms(parts, [*taken[:3], "RuntimeError: no room", "RuntimeError: no room"]) is None
    assert least_ms([], []) is None


def test_a_row_on_hidden_states_has_flops_and_a_ceiling_wherever_it_is_measured():
    (row,) = compare(HEAD_CASES["head_logp"], "nograd", small_batch(), [provider_of("halos")], repeats=2)
    assert (row.H, row.gb_per_s) == (SHAPE[3], None)
    assert row.ceiling_share is not None
    assert row.floor_flops is not None
    assert row.ms_median is not None
    assert row.tflop_per_s == pytest.approx(row.floor_flops / row.ms_median / 1e9)


@pytest.mark.parametrize(("dtype", "note"), [(torch.float32, ""), (torch.bfloat16, APPROXIMATE)])
def test_an_approximation_is_timed_beside_its_error(dtype, note):
    if provider_of("torch").obstacle(CPU):
        pytest.skip("torch has no linear_cross_entropy")
    (row,) = compare(HEAD_CASES["head_dpo_given"], "full", small_batch(dtype), [provider_of("torch")], repeats=2)
    assert row.note == note
    assert row.ms_median is not None


def test_an_approximation_of_something_else_is_a_wrong_answer():
    halos = provider_of("halos")
    other = replace(halos, approximate=True, value=lambda case, batch: 3 * halos.value(case, batch))
    (row,) = compare(HEAD_CASES["head_dpo_given"], "full", small_batch(), [other], repeats=2)
    assert (row.note, row.ms_median) == (WRONG, None)


def test_a_peer_that_is_not_here_says_why():
    obstacles = available(("cce", "liger", "trl"), CPU)[1]
    assert sum("cut-cross-entropy" in obstacle and "for a GPU" in obstacle for obstacle in obstacles) == 2


def of_others(hidden, weight, ids, **options):
    """Stand in for others' kernels: the mean cross-entropy of the rows that are not ignored, of 128 rows or more."""
    assert len(hidden) == len(ids) == 128
    assert options["reduction"] == "mean"
    return torch.nn.functional.cross_entropy(hidden @ weight.T, ids, ignore_index=options["ignore_index"])


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [
        (QUACK_CHUNKED, "quack.linear_cross_entropy", "chunked_linear_cross_entropy"),
        (QUACK_EPILOGUE, "quack.linear_cross_entropy", "chunked_linear_cross_entropy"),
        (
            LIGER_CUTE,
            "liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy_sm90",
            "liger_fused_linear_cross_entropy_sm90",
        ),
    ],
)
def test_a_kernel_in_cute_dsl_is_given_whole_tiles_of_rows_and_gives_the_oracle_s_answer(
    monkeypatch, name, module, function
):
    for end, letter in enumerate(f"{module}."):
        if letter == ".":
            monkeypatch.setitem(sys.modules, module[:end], ModuleType(module[:end]))
    monkeypatch.setattr(sys.modules[module], function, of_others, raising=False)
    (provider,) = (provider for provider in PROVIDERS if provider.name == name)
    (case,) = (HEAD_CASES[case] for case in provider.cases)
    for mode in case.modes:
        (row,) = compare(case, mode, small_batch(), [provider], repeats=2)
        assert row.note == ""
        assert row.ms_median is not None


def test_a_kernel_in_cute_dsl_that_is_not_installed_is_left_out_and_named():
    obstacles = available(("quack", "liger"), CPU)[1]
    for name in (QUACK_CHUNKED, QUACK_EPILOGUE, LIGER_CUTE):
        (line,) = (line for line in obstacles if name in line)
        assert "not installed" in line


def test_only_hopper_has_the_kernels_that_are_written_for_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert "9.0, this is 8.0" in str(cute.on_hopper(lambda device: None)(torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert cute.on_hopper(lambda device: None)(torch.device("cuda")) is None


def test_what_somebody_has_not_implemented_is_not_tried_again():
    assert final("NotImplementedError: V must be a multiple of 256")
    assert not final("OutOfMemoryError: no room for it")


def test_goals_are_judged_on_the_rows_of_their_shape():
    common = {"H": 4096, "ms_20": 1.0, "ms_80": 1.0, "ceiling_ms": 0.9, "peak_mib": 3000.0}
    ours = Row("head_dpo", "full", "humanline_fused", 8, 1024, 128256, "bfloat16", 8184, ms_median=1.0, **common)
    theirs = replace(ours, provider="TRL 1.16.0, chunked", ms_median=1.2)
    masked = [replace(row, rows=5700) for row in (ours, theirs)]
    lines = kernel_goals.judged([ours, theirs, *masked], kernel_goals.HEAD_GOALS)
    judged = {(line["goal"], line["rows"]): (line["measured"], line[""]) for line in lines}
    assert judged["hidden dpo, time over the bare products", "8184"] == ("1.11", "missed")
    assert ("hidden dpo, time over the bare products", "5700") in judged
    assert judged["hidden dpo, times as fast as TRL's chunks", "8184"] == ("1.20", "met")
    assert ("hidden dpo, times as fast as TRL's chunks", "5700") not in judged
    assert judged["hidden dpo frozen, times as fast as TRL's chunks", "5700"] == ("", "not measured")


def test_a_pass_over_the_logits_costs_more_of_a_product_where_hidden_states_are_small():
    # 3 products and 2 passes: 1 + 2 / 3 · 184 / H, and 5 % for the rest.
    bounds = {goal.H: goal.bound for goal in kernel_goals.HEAD_GOALS if goal.name == GIVEN}
    expected = {4096: 1.03 + 0.05, 1536: 1.08 + 0.05, 896: 1.137 + 0.05}
    assert bounds == {H: pytest.approx(bound, abs=1e-3) for H, bound in expected.items()}


@pytest.mark.parametrize("H", [4096, 1536, 896])
def test_each_hidden_size_is_judged_by_its_own_bound(H):
    row = Row("head_dpo_given", "full", "humanline_fused", 8, 1024, 128256, "bfloat16", 8184, H=H)
    lines = kernel_goals.judged(
        [replace(row, ms_20=1.0, ms_median=1.0, ms_80=1.0, ceiling_ms=0.9)], kernel_goals.HEAD_GOALS
    )
    (line,) = (line for line in lines if line["goal"] == GIVEN)
    assert (line["H"], line["measured"]) == (str(H), "1.11")
    assert line[""] == ("missed" if H == 4096 else "met")


@pytest.mark.parametrize(("rows", "accumulator"), [(8184, 4), (5700, 0)])
def test_memory_is_judged_without_gradients_and_the_accumulator_where_there_is_one(rows, accumulator):
    B, T, V, H = 8, 1024, 151936, 4096
    held = 2 * (B * T * H + V * H) + accumulator * V * H + 2**31
    row = Row("head_dpo", "full", "humanline_fused", B, T, V, "bfloat16", rows, H=H, peak_mib=held / 2**20)
    assert row.workspaces == pytest.approx(1.0)


def test_every_goal_names_a_case_a_mode_and_a_provider_that_exist():
    names = {provider.name for provider in PROVIDERS}
    looked_at = set()

    class Everything(dict):
        def get(self, key, default=None):
            looked_at.add(key)
            case, mode, provider = key
            return Row(case, mode, provider, 8, 9, 500, "float32", 20, H=64, ms_median=1, ceiling_ms=1, peak_mib=1)

    for goal in (*kernel_goals.HEAD_GOALS, *kernel_goals.HEAD_GOALS_ON_A_CPU):
        assert goal.figure(Everything()) is not None
    assert all(mode in CASES[case].modes and provider in names for case, mode, provider in looked_at)
    assert all(case in provider.cases for case, _, name in looked_at for provider in PROVIDERS if provider.name == name)


def test_the_run_command_compares_on_hidden_states(capsys, tmp_path):
    csv = tmp_path / "figures.csv"
    sizes = ["--shape", "2", "4", "50", "--hidden", "16", "--masked", "0", "--repeats", "2"]
    main(["run", "head_dpo", "--mode", "frozen", "--providers", "halos", *sizes, "--csv", str(csv)])
    (row,) = read(csv, Row)[1]
    assert (row.case, row.mode, row.B, row.T, row.V, row.H, row.rows) == ("head_dpo", "frozen", 2, 4, 50, 16, 6)
    assert "TFLOP/s" in capsys.readouterr().out


def test_a_part_on_hidden_states_runs_to_its_end_at_toy_size(tmp_path):
    asked = ["--part", "head-v128256-masked", "--case", "head_grpo_given", "head_logp", "--providers", "ours", "halos"]
    main(["gpu", "--toy", *asked, "--results", str(tmp_path)])
    (file,) = tmp_path.glob("cpu-toy-*-head-v128256-masked.csv")
    rows = read(file, Row)[1]
    expected = {(name, mode) for name in ("head_grpo_given", "head_logp") for mode in HEAD_CASES[name].modes}
    assert {(row.case, row.mode) for row in rows} == expected
    assert {row.note for row in rows if "interpreter" in row.provider} == {CHECKED}
    assert {(row.V, row.H) for row in rows} == {(2004, 64)}
