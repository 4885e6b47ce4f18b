"""Budgets of whole launches, beside those of their loops: sectors of memory and instructions per element.

A sector is 32 bytes, counted as often as a warp asks for it; one unit is the sectors that hold the logits once.
Instructions are those of PTX, of a launch's whole code: also the edges of a row, the sums over warps, and the target.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from humanline_kernels.dlogits import scale_dlogits_
from humanline_kernels.grpo_loss import grpo_loss_forward
from humanline_kernels.grpo_one_launch import grpo_one_launch
from humanline_kernels.token_logp import token_logp_backward, token_logp_backward_, token_logp_forward
from tests.ptx.counts import instructions
from tests.ptx.driver import active
from tests.ptx.emulator import Emulator, Launch

ROWS = 2
SM_80 = {
    "forward": {32000: 7.48, 50257: 6.98, 128256: 6.04},
    "backward": {32000: 8.70, 50257: 8.52, 128256: 7.78},
    "backward in place": {32000: 8.70, 50257: 8.52, 128256: 7.78},
    "one launch": {32000: 22.36, 50257: 23.44, 128256: 22.44},
    "scale": {32000: 4.75, 50257: 4.68, 128256: 4.30},
}
SM_100 = {
    "forward": {32000: 7.52, 50257: 7.00, 128256: 6.05},
    "backward": {32000: 7.67, 50257: 7.46, 128256: 6.75},
    "backward in place": {32000: 7.67, 50257: 7.46, 128256: 6.75},
    "one launch": {32000: 21.42, 50257: 22.35, 128256: 21.50},
    "scale": {32000: 5.28, 50257: 5.22, 128256: 4.82},
}
INSTRUCTIONS = {80: SM_80, 90: SM_80, 100: SM_100}
"""Counted per element with Triton 3.7.1, by architecture, kernel and vocabulary, rounded up.

On sm_100 two float32 share an instruction, which costs moves where there is little to compute, as in scaling. A GPU
issues fewer: its assembler merges some.
"""

MARGIN = 1.05
"""Of a count that another version of Triton may give."""

UNITS = {
    "forward": {"logits_ptr|ref_logits_ptr": (1, 0)},
    "backward": {"logits_ptr": (1, 0), "dlogits_ptr": (0, 1)},
    "backward in place": {"logits_ptr|dlogits_ptr": (1, 1)},
    "one launch": {"logits_ptr": (2, 0), "ref_logits_ptr": (1, 0), "dlogits_ptr": (0, 1)},
    "scale": {"dlogits_ptr": (1, 1)},
}
"""Units that are (read, written), by kernel and tensor. One launch reads the policy again from the cache."""


def rows(V: int, seed: int = 0) -> Tensor:
    return torch.randn(1, ROWS, V, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def calls(V: int) -> dict[str, Callable[[], object]]:
    """The launches of :data:`UNITS`, by name."""
    logits, ids, mask = rows(V), torch.tensor([[1, V - 1]]), torch.ones(1, ROWS, dtype=torch.bool)
    ones, softmax, bounds = torch.ones(1, ROWS), (1.0, None, 1.0), (0.2, 0.3, 0.05, -50.0, 50.0)
    scores = (ids, mask, None, 1.0 + 0 * ones, 12.0 + 0 * ones, None)
    return {
        "forward": lambda: token_logp_forward(logits, None, ids, mask, None, *softmax, False),
        "backward": lambda: token_logp_backward(ones, None, logits, *scores, *softmax),
        "backward in place": lambda: token_logp_backward_(ones, None, rows(V), *scores, *softmax),
        "one launch": lambda: grpo_one_launch(
            logits, rows(V, seed=1), None, ids, mask, None, ones, None, ROWS, *softmax, *bounds
        ),
        "scale": lambda: scale_dlogits_(rows(V), torch.tensor(2.0)),
    }


def launch_of(emulator: Emulator, call: Callable[[], object]) -> Launch:
    """Return the only launch of a call."""
    launches: list[Launch] = []
    counting = Emulator(emulator.arch, on_launch=launches.append)
    counting.programs = emulator.programs
    with active(counting):
        call()
    (launch,) = launches
    return launch


@pytest.mark.parametrize("V", [32000, 50257, 128256])
@pytest.mark.parametrize("name", UNITS)
def test_a_launch_keeps_within_its_sectors_and_instructions_per_element(emulator, name, V):
    launch = launch_of(emulator, calls(V)[name])
    unit = ROWS * V * 2 / 32
    # A warp's 512 bytes lie in 16 sectors, or in 17 where the row does not begin with one. Every warp reads the target.
    widest = (1 if V * 2 % 32 == 0 else 17 / 16) + 32 / unit
    moved = {(one.name, one.write): one.sectors / unit for one in launch.traffic()}
    for tensor, units in UNITS[name].items():
        for write, most in enumerate(units):
            found = moved.pop((tensor, bool(write)), 0.0)
            assert most * (1 - 1 / V) <= found <= most * widest
    assert max(moved.values(), default=0) < 0.005  # all else is a few numbers per row
    executed = 32 * instructions(launch.program, launch.record).total() / (ROWS * V)
    counted = INSTRUCTIONS[max(arch for arch in INSTRUCTIONS if arch <= emulator.arch)][name][V]
    assert executed <= MARGIN * counted


def test_grpo_loss_asks_for_each_sector_once(emulator):
    """Neighbouring lanes hold neighbouring tokens, also where the last tile is not full."""
    logp = torch.randn(4, 2050, generator=torch.Generator().manual_seed(0))
    mask, advantages = torch.ones(4, 2050, dtype=torch.bool), torch.ones(4, 1).expand(4, 2050)
    settings = (0.2, 0.2, 0.04, -1.5, 1.2, True)
    launch = launch_of(emulator, lambda: grpo_loss_forward(logp, logp + 0.1, mask, advantages, None, *settings))
    moved = {(one.name, one.write): (one.sectors, one.distinct) for one in launch.traffic()}
    tokens = (("logp_ptr", False), ("ref_logp_ptr", False), ("loss_mask_ptr", False), ("coefficient_ptr", True))
    for once in tokens:
        sectors, distinct = moved[once]
        assert sectors == distinct
