"""Call functions of a test module on one or two ranks (gloo).

One process forks the ranks, so all of them together cost one import of the module. The functions run one after another;
a later one may read the files of an earlier one.
"""

import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from humanline_fused.training import HumanlineTrainer
from tests.disk import do_not_wait_for_the_disk
from tests.fork_server import call
from tests.other_processor import multiply_as_another_processor_if_asked
from tests.seeds import keep_no_seeds_for_gpus
from tests.tiny_model import losses

PATIENCE = 300
"""Timeout in seconds for a rank that waits for another."""

Run = Callable[[Path, int], None]


def on_ranks(folder: Path, *runs: tuple[Run, int]) -> None:
    """Call every ``run(folder, n)`` in each of ``n`` processes."""
    call(_run_all, runs, folder, output=folder / "printed")


class SaveOnce(TrainerCallback):
    """Saves one checkpoint, after ``step`` steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = state.global_step == self.step


def keep(trainer: HumanlineTrainer, file: Path, **more: Any) -> None:
    """Save the results of a run for the tests, and whether every parameter is a DTensor. Collective."""
    parameters = trainer.model.state_dict().values()  # sharded, even if a forward pass left them unsharded
    kept = {
        "losses": torch.tensor(losses(trainer)),
        "weights": torch.cat([whole(p).flatten() for p in parameters]),
        "sharded": {isinstance(p, DTensor) for p in parameters},
        "first": trainer.state.log_history[0],
    }
    if trainer.args.process_index == 0:
        torch.save(kept | more, file)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _forked(run: Run, folder: Path, index: int, ranks: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    signal.alarm(PATIENCE)
    if ranks > 1:
        place = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
    try:
        run(folder, ranks)
        if ranks > 1:
            torch.distributed.destroy_process_group()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def _run(run: Run, folder: Path, ranks: int) -> None:
    """Stop the other ranks, which may wait, when one rank fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = {_forked(run, folder, index, ranks, port) for index in range(ranks)}
    failed = False
    while running:
        child, status = os.wait()
        running.discard(child)
        if status and not failed:
            failed = True
            for other in running:
                os.kill(other, signal.SIGKILL)
    if failed:
        sys.exit(1)


def _run_all(runs: tuple[tuple[Run, int], ...], folder: Path) -> None:
    torch.set_num_threads(1)
    multiply_as_another_processor_if_asked()
    do_not_wait_for_the_disk()
    keep_no_seeds_for_gpus()
    gc.freeze()  # accelerate collects garbage often: exclude imported objects
    for run, ranks in runs:
        _run(run, folder, ranks)
