"""Budgets of whole launches, beside those of their loops: sectors of memory and instructions per element."""

from dataclasses import replace

import pytest
import torch

from benchmarks.results import read, write
from benchmarks.static.launch_budgets import INSTRUCTIONS, MARGIN, PASSES, broken
from benchmarks.static.launch_cost import LaunchCost
from benchmarks.static.launch_table import markdown
from humanline_kernels.grpo_loss import grpo_loss_forward

ROW = LaunchCost("backward", "sm_90", 32000, 8.7, 1.0, 1.0, 0.02)


@pytest.mark.parametrize("V", [32000, 50257, 128256])
@pytest.mark.parametrize("launch", PASSES)
def test_a_launch_keeps_within_its_sectors_and_instructions_per_element(emulator, launch, V):
    from benchmarks.static.launches import launch_cost

    assert broken([launch_cost(emulator, launch, V)]) == []


@pytest.mark.parametrize(("advantage", "beta", "again"), [(1.0, 0.0, 1), (0.0, 0.1, 1), (0.0, 0.0, 0)])
def test_in_one_launch_a_row_without_a_gradient_is_not_held_nor_read_again(emulator, advantage, beta, again):
    from benchmarks.static.launches import calls, first_launch

    V = 4104
    launch = first_launch(emulator, calls(V, advantage=advantage, beta=beta)["one launch"])
    read = sum(one.nbytes for one in launch.traffic() if one.name == "logits_ptr")
    held = sum(
        access.width * len(access.address)
        for access in launch.record.accesses
        if "evict_last" in launch.program.instructions[access.number].opcode
    )
    row_bytes = launch.ctas * V * 2
    assert held == again * row_bytes
    assert read // row_bytes == 1 + again  # the rest of a row's bytes is the target, which every thread reads


@pytest.mark.parametrize("launch", ["backward in place", "score and dlogits", "scale"])
def test_in_place_no_warp_reads_what_another_may_have_written(emulator, launch):
    """A race is harmless if nothing depends on what was read; here there is none, at the edges of rows either."""
    from benchmarks.static.launches import calls, first_launch

    assert first_launch(emulator, calls(4999)[launch]).record.harmless == []


def test_grpo_loss_asks_for_each_sector_once(emulator):
    """Neighbouring lanes hold neighbouring tokens, also where the last tile is not full."""
    from benchmarks.static.launches import first_launch

    logp = torch.randn(4, 2050, generator=torch.Generator().manual_seed(0))
    mask, advantages = torch.ones(4, 2050, dtype=torch.bool), torch.ones(4, 1).expand(4, 2050)
    settings = (0.2, 0.2, 0.04, -1.5, 1.2, True)
    launch = first_launch(emulator, lambda: grpo_loss_forward(logp, logp + 0.1, mask, advantages, None, *settings))
    moved = {(one.name, one.write): (one.sectors, one.distinct) for one in launch.traffic()}
    tokens = (("logp_ptr", False), ("ref_logp_ptr", False), ("loss_mask_ptr", False), ("coefficient_ptr", True))
    for once in tokens:
        sectors, distinct = moved[once]
        assert sectors == distinct


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"instructions_per_element": 9.2}, "9.2 instructions per element, budget 9.15"),
        ({"passes_read": 2.0}, "2.0 passes read, budget 1"),
        ({"passes_written": 0.5}, "0.5 passes written, budget 1"),
        ({"passes_written": 0.0}, "0.0 passes written, budget 1"),
        ({"others": 0.1}, "0.1 passes for everything else"),
        ({"V": 50257, "passes_read": 1.07}, "1.07 passes read"),
    ],
)
def test_a_launch_over_a_budget_is_named(change, said):
    (line,) = broken([replace(ROW, **change)])
    assert line.startswith("backward on sm_90, V=")
    assert said in line


def test_a_row_off_the_boundary_may_ask_for_a_17th_sector():
    assert broken([ROW, replace(ROW, V=50257, passes_read=17 / 16, passes_written=17 / 16)]) == []


def test_an_architecture_that_nobody_counted_has_the_budget_of_the_last():
    most = MARGIN * INSTRUCTIONS[100]["backward"][32000]
    assert broken([replace(ROW, arch="sm_120", instructions_per_element=most - 0.01)]) == []
    assert len(broken([replace(ROW, arch="sm_120", instructions_per_element=most + 0.01)])) == 1


def test_the_file_gives_back_the_launches_and_a_table_of_them(tmp_path):
    path, facts = tmp_path / "launches.csv", {"triton": "3.7", "command": "python -m benchmarks static"}
    rows = [ROW, replace(ROW, arch="sm_100", instructions_per_element=7.5)]
    write(path, LaunchCost, facts, rows)
    assert read(path, LaunchCost) == (facts, rows)
    assert "| backward | 32000 | 8.70 (9.15) | 7.50 (9.18) | 1.00 (1) | 1.00 (1) |" in markdown(path, path.name)
