"""Counts of whole launches, beside those of their loops: instructions, and passes over the logits, per element.

The kernels are compiled and run by the tests' emulator (``tests/ptx``), without a GPU and without
``TRITON_INTERPRET``. Instructions are those of PTX, of a launch's whole code: also the edges of a row, the sums over
warps, and the target. A GPU issues fewer: its assembler merges some. Sectors of 32 bytes count as often as a warp asks
for them; one pass is the sectors that hold the logits once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.static.launch_cost import LaunchCost
from humanline_kernels.dlogits import scale_dlogits_
from humanline_kernels.grpo_one_launch import grpo_one_launch
from humanline_kernels.score_and_dlogits import score_and_write_dlogits_
from humanline_kernels.token_logp import token_logp_backward, token_logp_backward_, token_logp_forward
from tests.ptx.counts import SECTOR, instructions
from tests.ptx.driver import active
from tests.ptx.emulator import Emulator, Launch
from tests.ptx.findings import EmulationError, UnknownInstruction

VOCABULARIES = (32000, 50257, 128256)
ROWS = 2


def launch_cost(emulator: Emulator, launch: str, V: int) -> LaunchCost:
    """One of :func:`calls`, compiled for the emulator's architecture.

    Raises:
        UnknownInstruction: of PTX that is not emulated; the message says which, of which kernel.
    """
    done = first_launch(emulator, calls(V)[launch])
    elements = ROWS * V
    sector = SECTOR / torch.bfloat16.itemsize / elements  # in passes
    moved = [(one, one.sectors * sector) for one in done.traffic()]

    def passes(write: bool) -> float:
        return round(sum((size for one, size in moved if "logits" in one.name and one.write == write), 0.0), 4)

    executed = 32 * instructions(done.program, done.record).total() / elements
    others = sum(size for one, size in moved if "logits" not in one.name)
    figures = round(float(executed), 2), passes(False), passes(True), round(others, 4)
    return LaunchCost(launch, f"sm_{emulator.arch}", V, *figures)


def measured(arch: str) -> list[LaunchCost]:
    """All launches at every vocabulary.

    Raises:
        RuntimeError: a launch was not run, or has a finding; the message says why.
    """
    emulator = Emulator(int(arch.removeprefix("sm_")))
    try:
        return [launch_cost(emulator, launch, V) for V in VOCABULARIES for launch in calls(V)]
    except (UnknownInstruction, EmulationError) as error:  # errors with findings cannot be sent to another process
        raise RuntimeError(str(error)) from None


def calls(V: int, advantage: float = 1.0, beta: float = 0.05) -> dict[str, Callable[[], object]]:
    """Each begins with the launch of its name."""
    logits, ids, mask = _rows(V), torch.tensor([[1, V - 1]]), torch.ones(1, ROWS, dtype=torch.bool)
    ones, softmax, bounds = torch.ones(1, ROWS), (1.0, None, 1.0), (0.2, 0.3, beta, -50.0, 50.0)
    scores = (ids, mask, None, 1.0 + 0 * ones, 12.0 + 0 * ones, None)
    return {
        "forward": lambda: token_logp_forward(logits, None, ids, mask, None, *softmax, False),
        "backward": lambda: token_logp_backward(ones, None, logits, *scores, *softmax),
        "backward in place": lambda: token_logp_backward_(ones, None, _rows(V), *scores, *softmax),
        "one launch": lambda: grpo_one_launch(
            logits, _rows(V, seed=1), None, ids, mask, None, advantage * ones, None, ROWS, *softmax, *bounds
        ),
        "score and dlogits": lambda: score_and_write_dlogits_(_rows(V)[0], ids[0], None, ROWS, 1.0, 1.0),
        "scale": lambda: scale_dlogits_(_rows(V), torch.tensor(2.0)),
    }


def _rows(V: int, seed: int = 0) -> Tensor:
    return torch.randn(1, ROWS, V, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def first_launch(emulator: Emulator, call: Callable[[], object]) -> Launch:
    """The first launch of a call: a second one divides the sums of a loss."""
    launches: list[Launch] = []
    counting = Emulator(emulator.arch, on_launch=launches.append)
    counting.programs = emulator.programs
    with active(counting):
        call()
    return launches[0]
