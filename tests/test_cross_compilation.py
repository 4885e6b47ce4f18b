"""The kernels are machine code on every supported NVIDIA generation, seen without a GPU."""

import pytest

from benchmarks.static import ARCHITECTURES, Resources, report


@pytest.fixture(scope="module")
def compiled() -> list[Resources]:
    return report(list(ARCHITECTURES))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_every_kernel_compiles_without_spills(compiled, arch):
    kernels = {row.kernel.split()[0]: row for row in compiled if row.arch == arch}
    assert set(kernels) == {
        "token_logp.token_logp_forward_kernel",
        "token_logp.token_logp_backward_kernel",
        "dpo_loss.dpo_loss_kernel",
        "kto_loss.kto_loss_kernel",
        "grpo_loss.grpo_loss_kernel",
    }
    assert [row for row in compiled if row.arch == arch and row.spills] == []


def test_logits_are_read_and_written_16_bytes_at_a_time_where_the_vocabulary_is_a_multiple_of_16(compiled):
    over_logits = [row for row in compiled if row.kernel.startswith("token_logp.")]
    aligned = [row for row in over_logits if "odd vocabulary" not in row.kernel]
    assert {row.load_bits for row in aligned} == {128}
    assert {row.store_bits for row in aligned if "backward" in row.kernel} == {128}
    # The negative shows that the figure can tell: unaligned rows are right, but load narrowly.
    assert {row.load_bits for row in over_logits if row not in aligned} != {128}


# What a loop may cost so that memory stays the limit: an H200 at 4.3 TB/s has 13 issue slots per bfloat16 element and
# twice as many per float32 element; these are what the loops need, with room for another compiler.
BUDGETS = {
    "token_logp_forward_kernel bf16": {0: 5.6},
    "token_logp_forward_kernel fp16": {0: 5.6},
    "token_logp_forward_kernel fp32": {0: 4.2},
    "token_logp_backward_kernel bf16": {0: 6.7, 1: 1.3},
    "token_logp_backward_kernel fp16": {0: 6.7, 1: 1.3},
}


@pytest.mark.parametrize("kernel", BUDGETS)
def test_the_loops_over_the_vocabulary_keep_within_their_instructions_per_element(compiled, kernel):
    rows = [row for row in compiled if f".{kernel} " in row.kernel and "odd vocabulary" not in row.kernel]
    assert len(rows) >= len(ARCHITECTURES)
    for row in rows:
        over = {loop: row.loops[loop] for loop, budget in BUDGETS[kernel].items() if row.loops[loop] > budget}
        assert not over, f"{row.kernel} on {row.arch}: {over}"


def test_a_loop_that_loads_narrowly_is_seen_to_cost_more(compiled):
    odd = [row for row in compiled if "odd vocabulary" in row.kernel and "backward" in row.kernel]
    assert odd
    assert all(row.loops[0] > BUDGETS["token_logp_backward_kernel bf16"][0] for row in odd)


def test_a_kernel_starved_of_registers_is_seen_to_spill():
    starved = report(["sm_90"], max_registers=24)
    assert any(row.spills for row in starved)
