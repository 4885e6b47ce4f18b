"""What a loop over the vocabulary may cost so that memory stays the limit, seen in machine code, without a GPU.

An H200 at 4.3 TB/s has 13 issue slots and 1.7 exp operations per bfloat16 element that it reads.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.static.report import ARCHITECTURES, Report, measure
from benchmarks.static.rows import Row
from benchmarks.static.specialisations import Specialisation, token_logp

KERNELS = Path(__file__).parent.parent / "kernels/humanline_kernels"
OVER_THE_VOCABULARY = ("token_logp_forward", "token_logp_backward", "grpo_one_launch", "scale_dlogits")
BYTES_IN_FLIGHT = 40 * 1024
"""Per SM: what the latency of memory costs at full bandwidth."""


@dataclass(frozen=True)
class Budget:
    """Instructions per element that some loops of a kernel may take."""

    kernel: str
    loops: tuple[str, ...]
    nvidia: float
    gfx942: float | None = None

    def on(self, arch: str) -> float | None:
        return self.gfx942 if arch == "gfx942" else self.nvidia


NEVER_LAUNCHED = {"gfx942": {"grpo_one_launch", "scale_dlogits"}}
"""Kernels that have no place on an architecture: no cache of AMD's holds one launch's rows in flight."""

FORWARD = ("sum_weights 1",)
FALL_BACK = ("maximum_of_row", "sum_weights 2")
REFERENCE_AND_POLICY = ("sum_weights 1", "sum_weights 3")

BUDGETS = (
    Budget("token_logp_forward bf16", FORWARD, 5.6, gfx942=4),
    Budget("token_logp_forward fp16", FORWARD, 5.6, gfx942=4),
    Budget("token_logp_forward fp32", FORWARD, 4.2, gfx942=4),
    Budget("token_logp_forward bf16 HAS_TEMPERATURE", FORWARD, 5.6, gfx942=4),
    Budget("token_logp_forward bf16 HAS_ENTROPY", FORWARD, 7.5),
    Budget("token_logp_forward bf16 HAS_SOFTCAP", FORWARD, 9.5),
    Budget("token_logp_forward bf16", FALL_BACK, 7.6),
    Budget("token_logp_forward fp16", FALL_BACK, 7.6),
    Budget("token_logp_forward fp32", FALL_BACK, 7.6),
    Budget("token_logp_backward bf16", ("store_dlogits",), 6.7, gfx942=10),
    Budget("token_logp_backward fp16", ("store_dlogits",), 6.7, gfx942=10),
    Budget("token_logp_backward fp32 EXACT", ("store_dlogits",), 6.7, gfx942=10),
    Budget("token_logp_backward bf16", ("store_zeros",), 1.3),
    Budget("token_logp_backward fp16", ("store_zeros",), 1.3),
    Budget("token_logp_backward fp32 EXACT", ("store_zeros",), 1.3),
    Budget("grpo_one_launch bf16 HAS_REFERENCE", REFERENCE_AND_POLICY, 5.6),
    Budget("grpo_one_launch fp16 HAS_REFERENCE", REFERENCE_AND_POLICY, 5.6),
    Budget("grpo_one_launch fp32 HAS_REFERENCE EXACT", REFERENCE_AND_POLICY, 4.2),
    Budget("grpo_one_launch bf16", FORWARD, 5.6),
    Budget("grpo_one_launch bf16 HAS_REFERENCE", ("store_dlogits",), 6.8),
    Budget("grpo_one_launch fp16 HAS_REFERENCE", ("store_dlogits",), 6.8),
    Budget("grpo_one_launch fp32 HAS_REFERENCE EXACT", ("store_dlogits",), 6.8),
    Budget("grpo_one_launch bf16 HAS_REFERENCE", ("store_zeros",), 1.3),
)


@pytest.fixture(scope="session")
def report() -> Report:
    return measure(ARCHITECTURES)


@pytest.fixture(scope="session")
def slow() -> list[Row]:
    kernel = "tests.slow_kernel:slow_token_logp_kernel"
    spec = Specialisation(kernel, "bf16", {"BLOCK_V": 4096}, num_warps=16, read_bytes=2, written_bytes=0)
    return measure(ARCHITECTURES, [spec]).rows


def over_the_vocabulary(report: Report, arch: str) -> list[Row]:
    return [row for row in report.rows if row.arch == arch and row.kernel.startswith(OVER_THE_VOCABULARY)]


def is_fall_back(row: Row) -> bool:
    """Of the few rows whose sum overflows: the second sum of a row, and the maximum before it."""
    return row.loop.startswith("maximum_of_row") or row.loop in ("sum_weights 2", "sum_weights 4")


def narrow(row: Row) -> bool:
    return any(bits < 128 for bits in (*row.load_bits, *row.store_bits))


def waits(row: Row) -> bool:
    return row.shuffles + row.barriers > 0


def starves(row: Row) -> bool:
    return bool(row.load_bits) and row.bytes_in_flight < BYTES_IN_FLIGHT


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles_without_spills(report, arch):
    rows = [row for row in report.rows if row.arch == arch]
    written = {name for path in KERNELS.glob("*.py") for name in re.findall(r"def (\w+)_kernel\(", path.read_text())}
    assert written - {row.kernel.split()[0] for row in rows} == NEVER_LAUNCHED.get(arch, set())
    assert {row.kernel: row.spills for row in rows if row.spills} == {}


@pytest.mark.parametrize(
    ("budget", "arch"),
    [(budget, arch) for budget in BUDGETS for arch in ARCHITECTURES if budget.on(arch) is not None],
    ids=lambda value: value if isinstance(value, str) else f"{value.kernel}: {', '.join(value.loops)}",
)
def test_a_loop_over_the_vocabulary_keeps_within_its_instructions_per_element(report, budget, arch):
    rows = [row for row in report.rows if (row.kernel, row.arch) == (budget.kernel, arch) and row.loop in budget.loops]
    assert len(rows) == len(budget.loops)
    over = {row.loop: cost(row) for row in rows if cost(row) > budget.on(arch)}
    assert over == {}


def cost(row: Row) -> float:
    return float("inf") if row.instructions_per_element is None else row.instructions_per_element


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_access_in_a_loop_over_the_vocabulary_is_16_bytes_wide(report, arch):
    rows = over_the_vocabulary(report, arch)
    assert rows
    assert [(row.kernel, row.loop, row.load_bits, row.store_bits) for row in rows if narrow(row)] == []


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_thread_waits_for_another_in_a_loop_over_the_vocabulary(report, arch):
    rows = over_the_vocabulary(report, arch)
    assert [(row.kernel, row.loop) for row in rows if waits(row)] == []


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch.startswith("sm_")])
def test_an_sm_has_40_KB_of_logits_in_flight(report, arch):
    rows = [row for row in over_the_vocabulary(report, arch) if not is_fall_back(row)]
    assert rows
    assert {(row.kernel, row.loop): row.bytes_in_flight for row in rows if starves(row)} == {}


def test_a_slow_kernel_breaks_every_budget(slow):
    assert [row.arch for row in slow] == list(ARCHITECTURES)
    for row in slow:
        assert cost(row) > max(max(budget.nvidia, budget.gfx942 or 0) for budget in BUDGETS)
        assert narrow(row)
        assert waits(row)
        assert starves(row)


def test_a_kernel_starved_of_registers_is_seen_to_spill():
    forward, _ = token_logp("bf16")
    assert measure(["sm_90"], [forward], max_registers=24).rows[0].spills
