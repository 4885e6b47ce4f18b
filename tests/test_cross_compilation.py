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


def test_a_kernel_starved_of_registers_is_seen_to_spill():
    starved = report(["sm_90"], max_registers=24)
    assert any(row.spills for row in starved)
