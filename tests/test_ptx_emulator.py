"""The emulator finds what it is there to find: kernels in PTX with one fault each."""

import numpy as np
import pytest
import torch

from tests.ptx.emulator import Emulator
from tests.ptx.findings import EmulationError, UnknownInstruction

HEADER = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry k(
    .param .u64 .ptr .global .align 1 k_param_0,
    .param .u64 .ptr .global .align 1 k_param_1,
    .param .u32 k_param_2
)
.reqntid 64
{
    .reg .pred %p<9>;
    .reg .b32 %r<40>;
    .reg .b64 %rd<20>;
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    ld.param.b64 %rd1, [k_param_0];
    ld.param.b64 %rd2, [k_param_1];
    ld.param.b32 %r3, [k_param_2];
    mad.wide.u32 %rd3, %r1, 4, %rd1;
    mad.wide.u32 %rd4, %r1, 4, %rd2;
    mov.b32 %r4, global_smem;
    shl.b32 %r5, %r1, 2;
    add.s32 %r6, %r4, %r5;
    setp.lt.u32 %p1, %r1, 32;
    setp.lt.u32 %p2, %r1, 10;
"""
"""Threads of two warps: %r1 is the thread, %r3 the number; x begins at %rd1, y at %rd2; %rd3, %rd4 and %r6 are the
thread's own words of x, y and shared memory; %p1 is the first warp, %p2 ten of its threads."""


def run(emulator, body, x, y, number=0, ctas=1, x_name="x"):
    program = emulator.program("k", HEADER + body + "\n    ret;\n}\n", 1024)
    emulator.launch(program, (ctas, 1, 1), [(x_name, "*i32", x), ("y", "*i32", y), ("number", "i32", number)])


def kinds_of_findings(body, x, y, number=0, ctas=1, seed=None):
    """Run a body of PTX on two tensors; the kinds of its findings."""
    try:
        run(Emulator(schedule_seed=seed), body, x, y, number, ctas)
    except EmulationError as error:
        return sorted({finding.kind for finding in error.findings})
    return []


def buffers(n=64):
    return torch.arange(n, dtype=torch.int32), torch.zeros(n, dtype=torch.int32)


def test_a_copy_has_no_finding():
    x, y = buffers()
    assert kinds_of_findings("ld.global.b32 {%r7}, [%rd3 + 0];\nst.global.b32 [%rd4 + 0], {%r7};", x, y) == []
    assert torch.equal(x, y)


@pytest.mark.parametrize(("bits", "r"), [("b32", "%r1"), ("b64", "%rd1")])
def test_a_parameter_is_read_at_an_address_that_the_code_has_chosen(bits, r):
    x, y = buffers()
    addresses = f"mov.{bits} {r}6, k_param_0;\nmov.{bits} {r}7, k_param_1;"
    chosen = f"selp.{bits} {r}8, {r}6, {r}7, %p1;\nld.param.b64 %rd5, [{r}8];"
    own = "mad.wide.u32 %rd9, %r1, 4, %rd5;\nld.global.b32 {%r10}, [%rd9 + 0];\nst.global.b32 [%rd4 + 0], {%r10};"
    assert kinds_of_findings(f"{addresses}\n{chosen}\n{own}", x, y) == []
    assert torch.equal(y, torch.where(x < 32, x, 0))  # the first warp reads x, the second y


FAULTS = {
    "a load beyond the end": (
        "ld.global.b32 {%r7}, [%rd3 + 4];\nst.global.b32 [%rd4 + 0], {%r7};",
        ["out of bounds", "outside the view"],
    ),
    "a store before the begin": ("st.global.b32 [%rd4 + -4], {%r1};", ["out of bounds", "outside the view"]),
    "a load from no tensor": ("cvt.u64.u32 %rd5, %r3;\nld.global.b32 {%r7}, [%rd5 + 0];", ["out of bounds"]),
    "a guard that lets one lane too many through": (
        "setp.le.u32 %p3, %r1, 64;\nadd.s64 %rd5, %rd3, 4;\n@%p3 ld.global.b32 {%r7}, [%rd5 + 0];",
        ["out of bounds", "outside the view"],
    ),
    "a misaligned vector": ("ld.global.v4.b32 {%r7, %r8, %r9, %r10}, [%rd1 + 4];", ["misaligned"]),
    "a store beyond shared memory": ("st.shared.b32 [%r6 + 900], %r1;", ["out of bounds"]),
    "a register that is never written, stored": ("st.global.b32 [%rd4 + 0], {%r20};", ["undefined"]),
    "the same in a later block": ("bar.sync 0;\nst.global.b32 [%rd4 + 0], {%r20};", ["undefined"]),
    "a register written by some lanes and stored by all": (
        "@%p1 ld.global.b32 {%r20}, [%rd3 + 0];\nadd.s32 %r21, %r20, 1;\nst.global.b32 [%rd4 + 0], {%r21};",
        ["undefined"],
    ),
    "the same after a branch": (
        "@%p1 bra $L1;\nmov.b32 %r20, 5;\n$L1:\nst.global.b32 [%rd4 + 0], {%r20};",
        ["undefined"],
    ),
    "a branch on a register that is never written": (
        "setp.eq.b32 %p3, %r20, 0;\n@%p3 bra $L1;\nst.global.b32 [%rd4 + 0], {%r1};\n$L1:",
        ["undefined"],
    ),
    "shared memory that is never written": (
        "ld.shared.b32 %r7, [%r6];\nst.global.b32 [%rd4 + 0], {%r7};",
        ["undefined"],
    ),
    "shared memory loaded by the other warp before the barrier": (
        "st.shared.b32 [%r6], %r1;\nxor.b32 %r8, %r6, 128;\nld.shared.b32 %r7, [%r8];\n"
        "st.global.b32 [%rd4 + 0], {%r7};",
        ["race"],
    ),
    "global memory stored by the other warp before the barrier": (
        "xor.b32 %r8, %r1, 32;\nmad.wide.u32 %rd5, %r8, 4, %rd1;\nld.global.b32 {%r7}, [%rd5 + 0];\n"
        "st.global.b32 [%rd3 + 0], {%r1};\nst.global.b32 [%rd4 + 0], {%r7};",
        ["race"],
    ),
    "two warps that store to one address": ("st.global.b32 [%rd2 + 0], {%r1};", ["race"]),
    "a barrier that one warp misses": ("@%p1 bra $L1;\nbar.sync 0;\n$L1:", ["barrier"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    body, kinds = FAULTS[fault]
    assert kinds_of_findings(body, *buffers()) == kinds


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a_barrier_between_store_and_load_ends_the_race(seed):
    exchange = "st.shared.b32 [%r6], %r1;\nbar.sync 0;\nxor.b32 %r8, %r6, 128;\nld.shared.b32 %r7, [%r8];"
    x, y = buffers()
    assert kinds_of_findings(exchange + "\nst.global.b32 [%rd4 + 0], {%r7};", x, y, seed=seed) == []
    assert y.tolist() == [thread ^ 32 for thread in range(64)]


def test_a_race_for_a_value_that_nothing_depends_on_is_harmless():
    ignored = "xor.b32 %r8, %r1, 32;\nmad.wide.u32 %rd5, %r8, 4, %rd1;\nld.global.b32 {%r7}, [%rd5 + 0];\n"
    assert kinds_of_findings(ignored + "st.global.b32 [%rd3 + 0], {%r1};", *buffers()) == []


def test_a_lane_that_a_selection_leaves_out_may_be_undefined():
    body = "@%p1 ld.global.b32 {%r20}, [%rd3 + 0];\nselp.b32 %r21, %r20, 7, %p1;\nst.global.b32 [%rd4 + 0], {%r21};"
    x, y = buffers()
    assert kinds_of_findings(body, x, y) == []
    assert y.tolist() == [*range(32), *[7] * 32]


def test_the_half_of_a_pair_that_only_fills_it_up_may_be_undefined():
    body = "mov.b64 %rd9, {%r1, %r20};\nadd.f32x2 %rd10, %rd9, %rd9;\nmov.b64 {%r7, _}, %rd10;\n"
    assert kinds_of_findings(body + "st.global.b32 [%rd4 + 0], {%r7};", *buffers()) == []


def test_no_barrier_helps_between_ctas():
    first_lane = "setp.eq.b32 %p3, %r1, 0;\n@%p3 st.global.b32 [%rd2 + 0], {%r2};\nbar.sync 0;"
    assert kinds_of_findings(first_lane, *buffers()) == []
    assert kinds_of_findings(first_lane, *buffers(), ctas=2) == ["race"]


def test_an_access_may_not_leave_its_row():
    x = torch.zeros(2, 40, dtype=torch.int32)[:, :36]
    body = "mul.wide.u32 %rd6, %r3, 1;\nadd.s64 %rd7, %rd1, %rd6;\nld.global.v4.b32 {%r7, %r8, %r9, %r10}, [%rd7 + 0];"
    assert kinds_of_findings(body, x, buffers()[1], number=128) == []
    assert kinds_of_findings(body, x, buffers()[1], number=144) == ["outside the view"]
    assert kinds_of_findings(body, x[:, :34], buffers()[1], number=128) == ["straddles rows"]


def test_a_cta_may_not_touch_the_rows_of_others():
    logits = torch.zeros(2, 32, dtype=torch.int32)
    load = "ld.global.b32 {%r7}, [%rd3 + 0];"
    with pytest.raises(EmulationError, match="rows of others in k: a CTA touches 2 of 2 rows of logits_ptr; grid of 2"):
        run(Emulator(), load, logits, buffers()[1], ctas=2, x_name="logits_ptr")


def test_lanes_that_leave_a_loop_early_meet_the_others_again():
    body = """
    mov.u32 %r10, 0;
    mov.u32 %r11, 0;
$L1:
    add.s32 %r10, %r10, 2;
    add.s32 %r11, %r11, 1;
    setp.lt.u32 %p3, %r11, %r1;
    @%p3 bra $L1;
    shfl.sync.bfly.b32 %r12, %r10, 1, 31, -1;
    st.global.b32 [%rd4 + 0], {%r12};"""
    x, y = buffers()
    assert kinds_of_findings(body, x, y) == []
    assert y.tolist() == [2 * max(1, thread ^ 1) for thread in range(64)]


def test_a_warp_adds_its_lanes_up():
    x, y = buffers()
    assert kinds_of_findings("redux.sync.add.s32 %r7, %r1, -1;\nst.global.b32 [%rd4 + 0], {%r7};", x, y) == []
    assert y.tolist() == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32


def test_sectors_are_counted_as_warps_ask_for_them():
    launches = []
    emulator = Emulator(on_launch=launches.append)
    copy = "mad.wide.u32 %rd5, %r1, 32, %rd1;\nld.global.b32 {%r7}, [%rd5 + 0];\nst.global.b32 [%rd4 + 0], {%r7};"
    x, y = torch.zeros(8 * 64, dtype=torch.int32), torch.empty(80, dtype=torch.int32)
    y = y[(-y.data_ptr() % 32) // 4 :]  # begins with a sector
    run(emulator, copy, x, y)
    loaded, stored = launches[0].traffic()
    assert (loaded.name, loaded.requests, loaded.sectors, loaded.nbytes) == ("x", 2, 64, 256)
    assert (stored.name, stored.requests, stored.sectors, stored.nbytes) == ("y", 2, 8, 256)


# What is not emulated


@pytest.mark.parametrize(
    ("body", "instruction"),
    [
        ("wgmma.fence.sync.aligned;", "wgmma.fence.sync.aligned is not emulated"),
        ("add.sat.s32 %r7, %r1, %r1;", "add.sat.s32 is not emulated"),
        ("@%p1 bar.sync 0;", "guarded bar.sync is not emulated"),
        ("@%p2 bra $L1;\nshfl.sync.bfly.b32 %r7, %r1, 1, 31, -1;\n$L1:", "shfl.*among part of a warp"),
        ("{\n.reg .b32 t;\n}", "a scope inside the entry"),
    ],
)
def test_an_unknown_instruction_is_an_error_that_names_it_and_its_kernel(body, instruction):
    emulator = Emulator()
    with pytest.raises(UnknownInstruction, match=f"^k (was not run|did not end) for sm_90: .*{instruction}") as raised:
        run(emulator, body, *buffers())
    assert emulator.findings[-1] is raised.value


def test_approximate_results_move_by_what_the_manual_permits_and_no_more():
    body = "ld.global.b32 {%r7}, [%rd3 + 0];\nex2.approx.ftz.f32 %r8, %r7;\nst.global.b32 [%rd4 + 0], {%r8};"
    x, results = torch.linspace(-9, 9, 64), []
    for seed in (None, 1, 2):
        y = torch.zeros(64)
        run(Emulator(approx_seed=seed), body, x, y)
        results.append(y.numpy().astype(np.float64))
    exact = np.exp2(x.numpy().astype(np.float64))
    errors = [abs(result / exact - 1).max() for result in results]
    assert errors[0] <= 2.0**-24
    assert all(2.0**-23 < error <= 2.0**-22 + 2.0**-24 for error in errors[1:])
    assert not np.array_equal(results[1], results[2])
