"""Every kernel has faults planted in it, one at a time, and a test or a check of the emulator notices each.

Barriers, masks, alignment, bounds of loops and indices: what a compiler or a programmer gets wrong first.
"""

from functools import partial

import pytest
import torch

from humanline_kernels import (
    dlogits,
    dpo_loss,
    grpo_loss,
    grpo_one_launch,
    kto_loss,
    log_ratio,
    means,
    score_and_dlogits,
    sequences,
    softmax,
)
from humanline_kernels import token_logp as token_logp_kernels
from tests import test_losses as losses
from tests import test_several_warps as cases
from tests.ptx.emulator import Emulator
from tests.ptx.mutants import WRONG, Mutant, changed, outcome, without_barriers

CPU, FP32 = torch.device("cpu"), torch.float32

score = partial(cases.test_a_row_of_two_tiles_matches_the_oracle, CPU, FP32, "dpo")
score_again = partial(cases.test_rows_with_a_spike_are_read_again_by_all_warps, CPU, FP32, False)
temperature = partial(cases.test_a_temperature_per_token_goes_with_entropy_and_softcap, CPU, FP32, None)
temperature_of_loss = partial(cases.test_a_temperature_per_token_goes_with_a_loss, CPU, True)
in_place = partial(cases.test_in_place_a_row_has_the_gradient_of_the_one_beside_it, CPU, FP32, {})
scored_in_place = partial(cases.test_rows_are_scored_and_written_over_in_one_launch_as_in_two, CPU, FP32)
unread = partial(cases.test_rows_that_do_not_count_are_not_read, CPU, False)
unread_in_one_launch = partial(cases.test_rows_that_do_not_count_are_not_read, CPU, True)
in_one_launch = partial(cases.test_a_row_of_two_tiles_in_one_launch_matches_the_oracle, CPU, FP32)
scaled = partial(losses.test_a_grad_output_of_nan_reaches_no_masked_row, CPU, "dpo", "triton")
scale = partial(cases.test_another_grad_output_scales_every_tile, CPU, FP32)
pairs, labels, groups = (
    partial(cases.test_a_sequence_of_two_tiles_of_tokens_matches_the_oracle, CPU, objective, float("nan"))
    for objective in ("dpo", "kto", "grpo")
)
divide = partial(cases.test_partial_sums_and_coefficients_of_two_tiles_are_divided, CPU, False)


def an_id_beyond_the_vocabulary() -> None:
    logits = torch.zeros(1, 2, 40, dtype=torch.bfloat16)[..., :37]
    ids, mask = torch.tensor([[37, 36]]), torch.ones(1, 2, dtype=torch.bool)
    logp, *_ = token_logp_kernels.token_logp_forward(logits, None, ids, mask, None, 1.0, None, 1.0, False)
    assert logp.isnan().tolist() == [[True, False]]


def masked_tokens() -> None:
    logp = torch.full((2, 3), -1.0)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    bounds = torch.tensor([0, 3, 6])
    poisoned = logp.where(mask, torch.nan)
    loss, coefficient, *_ = dpo_loss.dpo_loss_forward(poisoned, logp, mask, bounds, 0.1, 0.0, -1.5, 1.5, True)
    assert loss.isfinite()
    assert (coefficient == 0).eq(~mask).all()


DX, DEDGES, INSIDE, UNMASKED = (
    "dx.to(dtype)",
    "dedges.to(dtype)",
    "mask=inside",
    "tl.load(logp_ptr + offsets, mask=inside",
)
FIRST_TILE, LAST_TILES = "range(0, body // BLOCK_V", "range(BLOCK_V, body // BLOCK_V"
forward, backward = token_logp_kernels.token_logp_forward_kernel, token_logp_kernels.token_logp_backward_kernel
one_launch, groups_kernel = grpo_one_launch.grpo_one_launch_kernel, grpo_loss.grpo_loss_kernel
head_kernel = score_and_dlogits.score_and_dlogits_kernel
scale_kernel = dlogits.scale_dlogits_kernel

MUTANTS = [
    # rows of logits
    Mutant(softmax.row_parts, "& 15)", "& 7)", score, "misaligned"),
    Mutant(softmax.row_parts, "(V - head) // VECTOR", "(V - head + VECTOR - 1) // VECTOR", score, "straddles rows"),
    Mutant(
        softmax.last_tile,
        "tl.multiple_of(body, VECTOR)",
        "tl.multiple_of(body + VECTOR, VECTOR)",
        score,
        "straddles rows",
    ),
    Mutant(softmax.edge_columns, "after < V)", "after <= V)", score, "outside the view"),
    Mutant(softmax.edge_columns, "lane < head,", "lane <= head,", score, WRONG),
    Mutant(softmax.sum_weights, FIRST_TILE, LAST_TILES, score, WRONG),
    Mutant(softmax.sum_weights, "BLOCK_V // VECTOR) == 0", "BLOCK_V // VECTOR) < 2", score, WRONG),
    Mutant(softmax.maximum_of_row, FIRST_TILE, LAST_TILES, score_again, WRONG),
    Mutant(softmax.score_row, "* tl.abs(constant) < 1e36", "* tl.abs(constant) >= 0", score_again, WRONG),
    Mutant(softmax.load_target, "(legal, target_id, 0)", "(legal, target_id + 1, 0)", score, "outside the view"),
    Mutant(softmax.load_target, "target_id < V", "target_id <= V", an_id_beyond_the_vocabulary, "outside the view"),
    # token_logp_forward
    Mutant(forward, "if counts:", "if n >= 0:", unread, WRONG),
    Mutant(forward, "n // T, n % T", "n % T, n // T", score, WRONG),
    Mutant(forward, "program >= N", "program > N", score, "race"),
    Mutant(forward, "temperature_ptr + n", "temperature_ptr + n // T", temperature, WRONG),
    # token_logp_backward
    Mutant(backward, "n // T, n % T", "n % T, n // T", score, WRONG),
    Mutant(backward, "dlogp *= tl.load(grad_output_ptr)", "pass", scaled, WRONG),
    Mutant(backward, "tl.where(counts, dlogp, 0.0)", "dlogp", scaled, WRONG),
    Mutant(backward, "(dlogp != 0)", "(dlogp > 0)", score, WRONG),
    Mutant(backward, "temperature_ptr + n", "temperature_ptr + n // T", temperature, WRONG),
    # dlogits
    Mutant(dlogits.store_dlogits, "tl.debug_barrier()\n    body_ptr", "body_ptr", in_place, "race"),
    Mutant(dlogits.store_dlogits, "tl.debug_barrier()\n    dtarget", "dtarget", score, "race"),
    Mutant(dlogits.store_dlogits, "range(0, whole", "range(BLOCK_V, whole", score, WRONG),
    Mutant(dlogits.store_dlogits, f"offsets, {DX}, {INSIDE}", f"offsets, {DX}", score, "outside the view"),
    Mutant(dlogits.store_dlogits, f"columns, {DEDGES}, {INSIDE}", f"columns, {DEDGES}", score, "outside the view"),
    Mutant(dlogits.store_dlogits, "(legal, target_id, 0)", "(legal, target_id + 1, 0)", score, WRONG),
    Mutant(dlogits.store_dlogits, "aligned(drow_ptr, head)", "aligned(drow_ptr, head + 1)", score, "misaligned"),
    Mutant(dlogits.store_dlogits, "whole - BLOCK_V - step", "whole - step", in_one_launch, "straddles rows"),
    Mutant(dlogits.store_zeros, FIRST_TILE, LAST_TILES, unread, WRONG),
    Mutant(dlogits.store_zeros, f"zeros, {INSIDE}", "zeros", unread, "out of bounds"),
    Mutant(dlogits.store_zeros, f"dtype), {INSIDE}", "dtype)", unread, "outside the view"),
    # scale_dlogits
    Mutant(scale_kernel, FIRST_TILE, LAST_TILES, scale, WRONG),
    Mutant(scale_kernel, "n % T * stride", "n % T * 0 * stride", scale, "race"),
    Mutant(scale_kernel, f"body_ptr + offsets, {DX}, {INSIDE}", f"body_ptr + offsets, {DX}", scale, "out of bounds"),
    Mutant(scale_kernel, "grad_output).to(dtype), mask=inside", "grad_output).to(dtype)", scale, "outside the view"),
    # grpo_one_launch
    Mutant(one_launch, "range(tl.program_id(0)", "range(0 * tl.program_id(0)", in_one_launch, "race"),
    Mutant(one_launch, "partials_ptr + n * 7", "partials_ptr + n * 6", in_one_launch, "race"),
    Mutant(one_launch, "if counts:", "if n >= 0:", unread_in_one_launch, WRONG),
    Mutant(one_launch, "temperature_ptr + n", "temperature_ptr + n // T", temperature_of_loss, WRONG),
    # score_and_dlogits
    Mutant(head_kernel, "range(tl.program_id(0)", "range(0 * tl.program_id(0)", scored_in_place, "race"),
    Mutant(head_kernel, "n * stride_logits_n", "n * (stride_logits_n - 1)", scored_in_place, "outside the view"),
    Mutant(head_kernel, "temperature_ptr + n", "temperature_ptr + n // 2", scored_in_place, WRONG),
    Mutant(head_kernel, "gain / temperature", "gain", scored_in_place, WRONG),
    Mutant(head_kernel, "log2_total_ptr + n", "log2_total_ptr + n // 2", scored_in_place, "race"),
    Mutant(dlogits.store_dlogits, "tl.debug_barrier()\n    dtarget", "dtarget", scored_in_place, "race"),
    # losses of tokens
    Mutant(log_ratio.clamped_log_ratio_tile, "tl.load(logp_ptr + offsets, mask=counts", UNMASKED, masked_tokens, WRONG),
    Mutant(groups_kernel, "0.0), mask=n < N", "0.0)", groups, "out of bounds"),
    Mutant(groups_kernel, "n, n < N,", "n, n <= N,", groups, "out of bounds"),
    Mutant(groups_kernel, "tile * BLOCK_T", "tile * (BLOCK_T - 1)", groups, "race"),
    Mutant(groups_kernel, "tile * 7", "tile * 6", groups, "race"),
    Mutant(sequences.sequence_log_ratio, "range(begin, end,", "range(begin, begin + BLOCK_T,", pairs, WRONG),
    Mutant(sequences.sequence_log_ratio, "n, n < end", "n, n <= end", labels, "out of bounds"),
    Mutant(sequences.store_sequence_coefficient, "0.0), mask=n < end", "0.0)", labels, "out of bounds"),
    Mutant(sequences.store_sequence_partials, "program * NUM_PARTIALS", "program * (NUM_PARTIALS - 1)", labels, "race"),
    Mutant(dpo_loss.dpo_loss_kernel, "P + chosen", "P + chosen - 1", pairs, "race"),
    Mutant(means.means_kernel, "range(0, R,", "range(BLOCK_R, R,", divide, WRONG),
    Mutant(means.means_kernel, "[:, None] < R)", "[:, None] <= R)", divide, "out of bounds"),
    Mutant(means.means_kernel, "< COLUMNS)\n        totals", "<= COLUMNS)\n        totals", divide, "out of bounds"),
    Mutant(means.means_kernel, "num_items), mask=n < N", "num_items), mask=n <= N", divide, "outside the view"),
    Mutant(means.means_kernel, "tile * BLOCK_T", "tile * (BLOCK_T - 1)", divide, "race"),
    Mutant(means.means_kernel, "if tile == 0:", "if tile >= 0:", divide, "race"),
    Mutant(means.means_kernel, "(after >= 0)", "(after >= -1)", divide, "out of bounds"),
    Mutant(kto_loss.kto_loss_kernel, "desirable_ptr + b", "desirable_ptr + b + 1", labels, "out of bounds"),
]

BARRIERS = {
    "token_logp_forward_kernel": score,
    "token_logp_backward_kernel": score,
    "grpo_one_launch_kernel": in_one_launch,
    "score_and_dlogits_kernel": scored_in_place,
    "dpo_loss_kernel": pairs,
    "kto_loss_kernel": labels,
    "grpo_loss_kernel": groups,
    "means_kernel": divide,
}
"""Kernels whose warps wait for each other, and a case of each."""


def case_name(case):
    """Return the name of a case's test; without its address, which differs between processes."""
    return getattr(case, "func", case).__name__.removeprefix("test_")


def fresh(emulator, **options):
    """Return an emulator that compiles anew, and keeps what it has read of unchanged kernels."""
    found = Emulator(emulator.arch, **options)
    found.programs = emulator.programs
    return found


@pytest.mark.parametrize("case", dict.fromkeys(mutant.case for mutant in MUTANTS), ids=case_name)
def test_without_a_fault_nothing_is_noticed(emulator, case):
    assert outcome(case, fresh(emulator)) == "unnoticed"


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_planted_fault_is_noticed(emulator, mutant):
    with changed(mutant.function, mutant.old, mutant.new):
        assert outcome(mutant.case, fresh(emulator)) == mutant.noticed


@pytest.mark.parametrize("kernel", BARRIERS)
def test_a_kernel_without_its_barriers_races(emulator, kernel):
    assert outcome(BARRIERS[kernel], fresh(emulator, mutate=without_barriers(kernel))) == "race"
