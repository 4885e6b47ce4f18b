"""The static report's numbers from assembly, on listings and figures that can be checked by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.results import read, write
from benchmarks.static import amdgcn, loss_launches, nvidia
from benchmarks.static.control_flow import Flow
from benchmarks.static.launch_cost import LaunchCost
from benchmarks.static.loop_cost import LoopCost, loop_costs
from benchmarks.static.loop_table import markdown
from benchmarks.static.loss_launches import ALLOWED, LossLaunches
from benchmarks.static.machine_code import Instruction, Kind, Loop, MachineCode
from benchmarks.static.roofline import DEVICES, predict, resident_programs
from benchmarks.static.source_lines import NOWHERE, Location, locations, number_locations, source_loop
from benchmarks.static.specialisations import Specialisation
from benchmarks.static.static_report import PARTS

SOURCE = """\
def load(ptr):
    return tl.load(ptr)

def fold(ptr, n):
    total = 0
    for start in range(0, n, 8):
        total += load(ptr + start)
    return total

def kernel(ptr, n):
    first = fold(ptr, n)
    second = fold(ptr + n, n)
"""


@pytest.fixture
def source_file(tmp_path: Path) -> Path:
    path = tmp_path / "source.py"
    path.write_text(SOURCE)
    return path


def load(bits: int, register: int, location: Location = NOWHERE) -> Instruction:
    written = frozenset(range(register, register + bits // 32))
    return Instruction(Kind.LOAD, bits, written, written, location)


def other(*registers: int, kind: Kind = Kind.OTHER, location: Location = NOWHERE) -> Instruction:
    return Instruction(kind, 0, frozenset(), frozenset(registers), location)


def test_a_loop_is_found_though_a_block_of_it_lies_elsewhere():
    # 0; 1 2→5 3→1 (the loop's head, its way out to 5, its end); 4 stops; 5 6→3
    flow = Flow(7, jumps=((2, 5), (3, 1), (6, 3)), stops=frozenset({4, 6}))
    assert flow.loops() == [(1, 2, 3, 5, 6)]


def test_an_outer_loop_holds_its_inner_one():
    flow = Flow(5, jumps=((2, 1), (3, 0)), stops=frozenset({4}))
    assert flow.loops() == [(0, 1, 2, 3), (1, 2)]


def test_a_jump_back_to_code_that_is_not_on_the_way_here_is_no_loop():
    # 0→3, 3→1, 1, 2 stops: laid out backwards, run once.
    flow = Flow(4, jumps=((0, 3), (3, 1)), stops=frozenset({0, 2, 3}))
    assert flow.loops() == []


@pytest.mark.parametrize(
    "loc",
    [
        '.file 1 "{folder}" "source.py"\n\t.loc\t1 2 12  // source.py:2:12 @[ source.py:7:18 @[ source.py:12:13 ] ]\n',
        "\t.loc\t1 12 13  // source.py:12:13\n"
        "\t.loc\t1 7 18, function_name $L__info_string0, inlined_at 1 12 13 // source.py:7:18\n"
        "\t.loc\t1 2 12, function_name $L__info_string0, inlined_at 1 7 18 // source.py:2:12\n"
        '.file 1 "{folder}/source.py"\n',
    ],
    ids=["calls in a comment", "calls in the directive"],
)
def test_an_instruction_belongs_to_the_loop_that_calls_its_function(source_file, loc):
    location = locations(loc.format(folder=source_file.parent))[-1]
    assert [line for _, line in location.frames] == [2, 7, 12]
    loop = source_loop(location)
    assert loop is not None
    assert (loop.function, [line for _, line in loop.lines]) == ("fold", [12, 6])


def test_the_lines_of_an_inline_asm_are_not_taken_for_the_source_s(source_file):
    ptx = f"""\
\t.loc\t1 2 12
\t// begin inline asm
\t.loc\t1 2 12
\tmov.u32 %r1, 0x0;
\t.loc\t1 3 12
\tld.global.b32 %r1, [ %rd1 ];
\t// end inline asm
.file 1 "{source_file}"
"""
    assert [location.frames for location in locations(ptx)] == [((str(source_file), 2),)] * 8


def test_every_location_gets_a_column_of_its_own_so_that_calls_on_one_line_differ():
    llir = "!1 = !DILocation(line: 7, column: 18, scope: !2)\n!3 = distinct !DILocation(line: 7, scope: !2)\n"
    assert number_locations(llir).splitlines() == [
        "!1 = !DILocation(line: 7, column: 1, scope: !2)",
        "!3 = distinct !DILocation(line: 7, column: 2, scope: !2)",
    ]


def test_an_instruction_outside_every_loop_belongs_to_none(source_file):
    assert source_loop(Location(((str(source_file), 2), (str(source_file), 11)))) is None


def test_two_calls_of_a_function_are_two_loops_each_with_its_largest_copy(source_file):
    def calls(line: int) -> Location:
        return Location(((str(source_file), 7), (str(source_file), line)))

    # second's loop, then first's remainder and first's unrolled loop: 1 and 2 loads.
    listing = [(load(128, 4, calls(12)), other(4)), (load(128, 4, calls(11)),), (load(128, 4, calls(11)), load(128, 8))]
    instructions = tuple(instruction for body in listing for instruction in body)
    jumps = ((1, 0), (2, 2), (4, 3))
    code = MachineCode(instructions, Flow(5, jumps, frozenset()), registers=32, spills=0, shared=0)
    assert [loop.bits(Kind.LOAD) for loop in code.loops()] == [256, 128]


def test_a_load_is_in_flight_until_its_registers_are_named():
    one_by_one = Loop((load(128, 4), other(4), load(128, 8), other(8)), None)
    together = Loop((load(128, 4), load(128, 8), other(4), other(8)), None)
    ahead = Loop((other(4), load(128, 4), load(128, 8), other(8)), None)
    assert [loop.bits_in_flight() for loop in (one_by_one, together, ahead)] == [128, 256, 256]


SASS = """\
        /*0000*/                   LDG.E.U8 R2, desc[UR16][R2.64] ;
        /*0010*/               @P0 EXIT ;
.L_x_1:
\t//## File ".nv_debug_ptx_txt", line 1
        /*0020*/              @!P0 LDG.E.EF.128 R4, desc[UR16][R2.64+0x400] ;
        /*0030*/                   MUFU.EX2 R8, R7 ;
        /*0040*/                   SHFL.BFLY PT, R9, R8, 0x10, 0x1f ;
        /*0050*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0060*/                   STG.E.64 desc[UR16][R10.64], R8 ;
        /*0070*/                   BRA.U !UP0, `(.L_x_1) ;
        /*0080*/                   EXIT ;
.L_x_2:
        /*0090*/                   BRA `(.L_x_2);
"""

AMDGCN = """\
\tglobal_load_ubyte v1, v0, s[2:3]
.LBB0_1:
\tbuffer_load_dwordx4 v[4:7], v1, s[20:23], 0 offen
\ts_waitcnt vmcnt(0)
\tv_exp_f32_e32 v8, v7
\tds_bpermute_b32 v9, v1, v8
\ts_barrier
\tglobal_store_dwordx2 v1, v[8:9], s[2:3]
\ts_cbranch_scc1 .LBB0_1
\ts_endpgm
\t.section\t.rodata,"a",@progbits
    .private_segment_fixed_size: 4
    .vgpr_count:     10
"""


def test_the_machine_code_of_nvidia_and_of_amd_reads_alike():
    for instructions, flow in (nvidia.parse(SASS, "\n"), parse_amdgcn()):
        (body,) = [[instructions[position] for position in loop] for loop in flow.loops() if len(loop) > 1]
        kinds = [instruction.kind for instruction in body if instruction.kind is not Kind.OTHER]
        assert kinds == [Kind.LOAD, Kind.EXP, Kind.SHUFFLE, Kind.BARRIER, Kind.STORE]
        assert [instruction.bits for instruction in body if instruction.bits] == [128, 64]
        assert body[0].written == {4, 5, 6, 7}
        assert instructions[0].bits == 8


def parse_amdgcn() -> tuple[tuple[Instruction, ...], Flow]:
    code = amdgcn.parse(AMDGCN, shared=0)
    assert (code.registers, code.spills) == (10, 4)
    return code.instructions, code.flow


@pytest.mark.parametrize(
    ("registers", "shared", "programs"),
    [
        (32, 0, 8),  # 2048 threads / 256
        (33, 0, 6),  # 40 per thread after rounding up: 12 warps in each quarter of 16384, 48 in all
        (64, 0, 4),
        (32, 100 * 1024, 2),  # 228 KiB / 101 KiB
    ],
)
def test_registers_threads_and_shared_memory_limit_programs_of_8_warps_on_an_h100(registers, shared, programs):
    assert resident_programs("sm_90", 8, registers, shared) == programs


def test_an_exact_softcap_is_bound_by_the_exp_unit():
    (h200,) = [device for device in DEVICES if device.name == "H200"]
    # 4.32 TB/s / 2 bytes = 2.16e12 elements/s; of 132 SMs at 1.7 GHz, 2.87e13 issue slots and 3.59e12 exp operations.
    shares = predict(h200, instructions=9.0, exp=3.0, memory_bytes=2)
    assert shares.issue == pytest.approx(9 * 2.16 / 28.7, rel=1e-2)
    assert shares.exp_unit == pytest.approx(3 * 2.16 / 3.59, rel=1e-2)
    assert shares.bandwidth == pytest.approx(1 / shares.exp_unit, rel=1e-2)


def test_a_loop_with_few_bytes_in_flight_is_bound_by_latency():
    h200 = next(device for device in DEVICES if device.name == "H200")
    wanted = 4320 / 132 * 800  # bytes per ns and SM, times ns
    assert predict(h200, 1, 0.1, 2, bytes_in_flight=8192).bandwidth == pytest.approx(8192 / wanted, rel=1e-2)


def test_a_loop_that_leaves_the_units_idle_is_bound_by_bandwidth():
    assert [predict(device, 1, 0.1, 2).bandwidth for device in DEVICES] == [1, 1, 1, 1]


def test_the_file_gives_back_the_rows_and_a_table_of_them(tmp_path):
    spec = Specialisation("module:fold_kernel", "bf16", {"HAS_ENTROPY": True}, 8, read_bytes=2, written_bytes=0)
    body = (load(128, 4), *(other(4, kind=Kind.EXP) for _ in range(8)), other())
    code = MachineCode(body, Flow(10, ((9, 0),), frozenset()), registers=32, spills=0, shared=0)
    facts = {"triton": "3.7", "command": "python -m benchmarks static"}
    (row,) = loop_costs(spec, "sm_90", code)
    assert (row.kernel, row.instructions_per_element, row.exp_per_element) == ("fold bf16 HAS_ENTROPY", 1.25, 1.0)
    assert row.bytes_in_flight == 8 * 256 * 16

    path = tmp_path / "static.csv"
    write(path, LoopCost, facts, [row])
    assert read(path, LoopCost) == (facts, [row])
    _, _, header, _ = path.read_text().splitlines()
    assert {"kernel", "arch", "loop", "instructions_per_element", "spills"} <= set(header.split(","))
    assert "| fold bf16 HAS_ENTROPY | unnamed | 1.25, 32 | H100 100%, H200 100% |" in markdown(path, path.name)
    assert "| H200 | 132 | 1.70 | 4.80 | 4.32 |" in markdown(path, path.name)


def test_a_loss_keeps_within_its_launches():
    rows = loss_launches.measure()
    assert [row.loss for row in rows] == [*ALLOWED]
    assert all(row.forward > 1 and row.backward > 0 for row in rows)
    assert loss_launches.broken(rows) == []


def test_a_loss_with_a_launch_too_many_is_named(tmp_path):
    (forward, backward), path = ALLOWED["dpo"], tmp_path / "losses.csv"
    within = LossLaunches("dpo", forward, backward)
    rows = [within, LossLaunches("dpo", forward + 1, backward), LossLaunches("dpo", forward, backward + 1)]
    assert [line.startswith("dpo: ") for line in loss_launches.broken(rows)] == [True, True]
    facts = {"command": "python -m benchmarks static", "torch": "2", "triton": "3"}
    write(path, LossLaunches, facts, [within])
    assert read(path, LossLaunches) == (facts, [within])
    assert f"| dpo | {forward} ({forward}) | {backward} ({backward}) |" in loss_launches.markdown(path, path.name)


def test_a_launch_that_was_not_emulated_is_not_passed(monkeypatch, capsys):
    def unknown(arch: str) -> list[LaunchCost]:
        raise RuntimeError("k was not run for sm_90: wgmma is not emulated")

    monkeypatch.setitem(PARTS, "launches", replace(PARTS["launches"], measure=unknown))
    with pytest.raises(SystemExit) as raised:
        main(["static", "--part", "launches"])
    assert raised.value.code == 1
    assert "launches were not counted: k was not run for sm_90: wgmma is not emulated" in capsys.readouterr().out
