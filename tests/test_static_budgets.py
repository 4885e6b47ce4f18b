"""Budgets of loops over the vocabulary, within which memory is the limit; read from machine code, without a GPU.

An H200 at 4.3 TB/s has 13 issue slots and 1.7 exp operations per bfloat16 element that it reads.
"""

import hashlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.machine import source_hash
from benchmarks.results import RESULTS, read, write
from benchmarks.static.budgets import (
    BUDGETS,
    broken,
    cost,
    is_fall_back,
    narrow,
    over_the_vocabulary,
    starves,
    waits,
)
from benchmarks.static.loop_cost import LoopCost
from benchmarks.static.loop_table import ARCHITECTURES, compiled, measure
from benchmarks.static.specialisations import Specialisation, token_logp
from benchmarks.static.static_report import COMPILED_CODE

NEVER_LAUNCHED = {
    "gfx942": {"grpo_one_launch", "score_and_dlogits", "scale_dlogits"}
}  # no cache of AMD's holds one launch's rows in flight
ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "kernels/humanline_kernels"
SLOW_KERNEL = ROOT / "tests/slow_kernel.py"


def sources() -> list[Path]:
    """Return the files that the rows depend on."""
    folders = (KERNELS, ROOT / "benchmarks/static")
    return sorted([*(path for folder in folders for path in folder.rglob("*.py")), SLOW_KERNEL, Path(__file__)])


def inputs(files: Sequence[Path]) -> str:
    """Return a hash of sources, of the compiler and of its settings."""
    found = hashlib.sha256()
    for path in files:
        found.update(f"{path.name}\n{path.read_text()}".encode())
    versions = [importlib.metadata.version(name) for name in ("triton", "networkx")]
    found.update(repr((sys.version, versions, settings_of_the_compiler())).encode())
    return found.hexdigest()[:32]


def settings_of_the_compiler() -> list[tuple[str, str]]:
    no_setting = ("TRITON_INTERPRET", "TRITON_CACHE_DIR")
    own = ((name, value) for name, value in os.environ.items() if name.startswith(("TRITON", "LLVM", "PTXAS")))
    return sorted((name, value) for name, value in own if name not in no_setting)


def committed(path: Path) -> list[LoopCost] | None:
    """Return the rows of a file if it is of this code and this compiler: to compile all takes minutes."""
    facts, rows = read(path, LoopCost)
    here = source_hash(folders=COMPILED_CODE), importlib.metadata.version("triton")
    same = (facts.get("compiled"), facts["triton"]) == here and not settings_of_the_compiler()
    return rows if same else None


def compiled_once(config: pytest.Config, name: str, compile_all: Callable[[], list[LoopCost]]) -> list[LoopCost]:
    """Return the rows of an earlier run with the same inputs: compilation takes minutes. ``--cache-clear`` forgets."""
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if cache is None:
        return compile_all()
    folder, given = cache.mkdir("static_budgets"), inputs(sources())
    path = folder / f"{name}-{given}.csv"
    if path.exists():
        return read(path, LoopCost)[1]
    rows = compile_all()
    for former in folder.glob(f"{name}-*"):
        former.unlink()
    if inputs(sources()) == given:  # else a source was changed meanwhile
        write(path, LoopCost, {}, rows)
    return rows


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> list[LoopCost]:
    rows = committed(RESULTS / "static.csv")
    return rows or compiled_once(pytestconfig, "report", lambda: measure(ARCHITECTURES))


FORWARD, BACKWARD = token_logp("bf16")
STARVED = replace(FORWARD, max_registers=24, note="starved")
SLOW = Specialisation(
    "tests.slow_kernel:slow_token_logp_kernel", "bf16", {"BLOCK_V": 4096}, num_warps=16, read_bytes=2, written_bytes=0
)
SLOW_ON = ("sm_90", "gfx942")


@pytest.fixture(scope="session")
def here(pytestconfig: pytest.Config) -> list[LoopCost]:
    """The rows of what is compiled on this machine in any case."""
    work = [(FORWARD, "sm_90"), (BACKWARD, "sm_90"), (STARVED, "sm_90"), *((SLOW, arch) for arch in SLOW_ON)]
    return compiled_once(pytestconfig, "here", lambda: compiled(work))


def rows_of(rows: Sequence[LoopCost], *specs: Specialisation) -> list[LoopCost]:
    return [row for row in rows if row.kernel in {spec.name for spec in specs}]


def test_the_report_has_the_rows_that_the_compiler_makes_here(report, here):
    expected = rows_of([row for row in report if row.arch == "sm_90"], FORWARD, BACKWARD)
    assert rows_of(here, FORWARD, BACKWARD) == expected
    assert len(expected) > 2


def test_rows_of_other_kernels_or_of_another_compiler_are_not_taken(tmp_path, monkeypatch):
    path, row = tmp_path / "static.csv", read(RESULTS / "static.csv", LoopCost)[1][0]
    facts = {"compiled": source_hash(folders=COMPILED_CODE), "triton": importlib.metadata.version("triton")}
    write(path, LoopCost, facts, [row])
    assert committed(path) == [row]
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    assert committed(path) is None
    monkeypatch.undo()
    for name in facts:
        write(path, LoopCost, facts | {name: "another"}, [row])
        assert committed(path) is None


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles_without_spills(report, arch):
    rows = [row for row in report if row.arch == arch]
    written = {name for path in KERNELS.glob("*.py") for name in re.findall(r"def (\w+)_kernel\(", path.read_text())}
    assert written - {row.kernel.split()[0] for row in rows} == NEVER_LAUNCHED.get(arch, set())
    assert {row.kernel: row.spills for row in rows if row.spills} == {}


@pytest.mark.parametrize(
    ("budget", "arch"),
    [(budget, arch) for budget in BUDGETS for arch in ARCHITECTURES if budget.on(arch) is not None],
    ids=lambda value: value if isinstance(value, str) else f"{value.kernel}: {', '.join(value.loops)}",
)
def test_a_loop_over_the_vocabulary_keeps_within_its_instructions_per_element(report, budget, arch):
    rows = [row for row in report if (row.kernel, row.arch) == (budget.kernel, arch) and row.loop in budget.loops]
    assert len(rows) == len(budget.loops)
    over = {row.loop: cost(row) for row in rows if cost(row) > budget.on(arch)}
    assert over == {}


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
def test_an_sm_has_40_KB_of_logits_in_flight_with_a_softcap_or_a_cache_20(report, arch):
    rows = [row for row in over_the_vocabulary(report, arch) if not is_fall_back(row)]
    assert rows
    assert {(row.kernel, row.loop): row.bytes_in_flight for row in rows if starves(row)} == {}


def test_the_command_has_no_broken_budget_to_show(report):
    assert broken(report) == []


def test_a_slow_kernel_breaks_every_budget(here):
    slow = rows_of(here, SLOW)
    assert [row.arch for row in slow] == list(SLOW_ON)
    for row in slow:
        assert cost(row) > max(max(budget.nvidia, budget.gfx942 or 0) for budget in BUDGETS)
        assert narrow(row)
        assert waits(row)
        assert starves(row)
    mistaken = [replace(row, kernel="token_logp_forward bf16", loop="sum_weights 1") for row in slow]
    said = broken(mistaken)
    for what in ("instructions per element, budget", "bits, budget 128", "barriers, budget 0"):
        assert sum(what in line for line in said) == len(slow)
    assert sum("bytes in flight, budget" in line for line in said) == 1  # an AMD GPU has no such budget


def test_a_budget_whose_loop_is_gone_is_broken(report):
    renamed = [replace(row, loop=row.loop.replace("sum_weights", "add_weights")) for row in report]
    assert any("sum_weights 1: no such loop" in line for line in broken(renamed))


def test_a_kernel_starved_of_registers_is_seen_to_spill(here):
    starved = rows_of(here, STARVED)
    assert starved
    assert all(row.spills for row in starved)


def test_rows_are_compiled_again_where_a_source_or_a_setting_of_the_compiler_changes(tmp_path, monkeypatch):
    kernel = tmp_path / "kernel.py"
    kernel.write_text("a = 1")
    before = inputs([kernel])
    assert before == inputs([kernel])
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    assert before != inputs([kernel])
    monkeypatch.undo()
    kernel.write_text("a = 2")
    assert before != inputs([kernel])
    assert {KERNELS / "token_logp.py", SLOW_KERNEL} <= set(sources())
