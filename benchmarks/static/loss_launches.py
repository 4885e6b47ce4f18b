"""Launches of a loss on logits: its kernels, and PyTorch's own operations, which cost the host as much.

Counted by the tests' counter (``tests/launch_counter.py``) on CPU tensors, without running a kernel: everything that a
GPU would be asked to compute or copy, without views and allocations.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from benchmarks.results import cells, read
from benchmarks.tables import columns, piped

ALLOWED = {"dpo": (5, 2), "kto": (6, 2), "grpo": (3, 2), "grpo in one launch": (4, 2)}
"""(forward, backward), by loss. One of the backward's is the 1 that autograd begins with."""


@dataclass(frozen=True)
class LossLaunches:
    """Of one loss of policy and reference on logits, with its gradient."""

    loss: str
    forward: int
    backward: int


def measure() -> list[LossLaunches]:
    """All losses, from a new process, whose kernels are defined without a GPU."""
    with ProcessPoolExecutor(1, get_context("spawn"), _without_a_gpu) as pool:
        return pool.submit(_counted).result()


def _without_a_gpu() -> None:
    """Before the kernels are imported: it permits them on the tensors of a CPU."""
    os.environ["TRITON_INTERPRET"] = "1"


def _counted() -> list[LossLaunches]:
    import torch

    from tests.launch_counter import launches_of_loss

    counts = {loss: launches_of_loss(loss, torch.device("cpu")) for loss in ALLOWED}
    return [LossLaunches(loss, len(forward), len(backward)) for loss, (forward, backward) in counts.items()]


def broken(rows: Sequence[LossLaunches]) -> list[str]:
    """A line for each loss that launches more than it may."""
    return [
        f"{row.loss}: {row.forward} launches forward and {row.backward} backward, budget {ALLOWED[row.loss]}"
        for row in rows
        if row.forward > ALLOWED[row.loss][0] or row.backward > ALLOWED[row.loss][1]
    ]


def table(rows: Sequence[LossLaunches]) -> str:
    """For a terminal."""
    return columns([{**cells(row), "budget": "{} + {}".format(*ALLOWED[row.loss])} for row in rows])


def markdown(path: Path, name: str, words: Sequence[str] = ()) -> str:
    """A file's losses as a table, and where they come from."""
    facts, rows = read(path, LossLaunches)
    lines = [
        {
            "loss on logits": row.loss,
            "launches forward (budget)": f"{row.forward} ({ALLOWED[row.loss][0]})",
            "backward (budget)": f"{row.backward} ({ALLOWED[row.loss][1]})",
        }
        for row in rows
    ]
    return f"{piped(lines)}\n\n`{name}`: `{facts['command']}`, torch {facts['torch']}, triton {facts['triton']}."
