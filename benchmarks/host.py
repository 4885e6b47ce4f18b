"""``python -m benchmarks host``: what a loss and its backward cost the host, beside the kernels.

Python, autograd and torch's own calls: a GPU's host pays them in every step, and waits for them where a batch is small.
Kernels are specialised and not run, on tensors of a few numbers on the CPU, whose operations take about as long as a
launch takes the host.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import environment
from benchmarks.results import read, write
from benchmarks.tables import columns, piped

CALLS = 200
"""Of each loss, after as many that are not timed. The median is reported."""


@dataclass(frozen=True)
class HostTime:
    """Of one loss of a policy and given log-probs of the reference, and of its backward."""

    host: str
    forward_us: float
    backward_us: float


def measure(calls: int = CALLS) -> list[HostTime]:
    """All losses, from a new process, whose kernels are defined without a GPU."""
    with ProcessPoolExecutor(1, get_context("spawn"), _without_a_gpu) as pool:
        return pool.submit(_measured, calls).result()


def _without_a_gpu() -> None:
    """Before the kernels are imported: it permits them on the tensors of a CPU."""
    os.environ["TRITON_INTERPRET"] = "1"


def _measured(calls: int) -> list[HostTime]:
    from tests.launch_counter import no_launch_and_no_look

    torch.set_num_threads(1)
    with no_launch_and_no_look():
        return [HostTime(name, *_medians(loss, calls)) for name, loss in _losses().items()]


def _losses() -> dict[str, Callable[[], Tensor]]:
    from humanline_fused import LMHead, Logits, TokenLogp, dpo_loss, grpo_loss

    B, T, H, V = 4, 8, 16, 32
    ids, mask = torch.zeros(B, T, dtype=torch.long), torch.ones(B, T, dtype=torch.bool)
    rows, advantages, given = mask.flatten().nonzero()[:, 0], torch.ones(B), TokenLogp(torch.zeros(B, T))
    hidden, weight = (torch.ones(*shape, requires_grad=True) for shape in ((B, T, H), (V, H)))
    logits = torch.ones(B, T, V, requires_grad=True)

    def head() -> LMHead:
        return LMHead(hidden, weight, rows=rows)

    return {
        "dpo on logits": lambda: dpo_loss(Logits(logits), given, ids, mask, impl="triton").loss,
        "grpo on logits": lambda: grpo_loss(Logits(logits), given, ids, mask, advantages, impl="triton").loss,
        "dpo, trained head": lambda: dpo_loss(head(), given, ids, mask, impl="triton").loss,
        "grpo, trained head": lambda: grpo_loss(head(), given, ids, mask, advantages, impl="triton").loss,
    }


def _medians(loss: Callable[[], Tensor], calls: int) -> tuple[float, float]:
    """Microseconds of this process's CPU time, which other processes do not lengthen: forward, and backward."""
    times = [_timed(loss) for _ in range(2 * calls)][calls:]
    forward, backward = (round(1e6 * statistics.median(column), 0) for column in zip(*times, strict=True))
    return forward, backward


def _timed(loss: Callable[[], Tensor]) -> tuple[float, float]:
    begin = time.process_time()
    value = loss()
    between = time.process_time()
    value.backward()
    return between - begin, time.process_time() - between


def _lines(rows: Sequence[HostTime]) -> list[dict[str, str]]:
    return [
        {"loss": row.host, "forward, µs": f"{row.forward_us:.0f}", "backward, µs": f"{row.backward_us:.0f}"}
        for row in rows
    ]


def markdown(path: Path, name: str, words: Sequence[str] = ()) -> str:
    """A file's rows as a table, and where they come from."""
    facts, rows = read(path, HostTime)
    return f"{piped(_lines(rows))}\n\n`{name}`: `{facts['command']}`, {facts['machine']}, torch {facts['torch']}."


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks host", description=__doc__)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = measure()
    print(columns(_lines(rows)))
    if options.csv:
        write(options.csv, HostTime, environment(torch.device("cpu")), rows)
