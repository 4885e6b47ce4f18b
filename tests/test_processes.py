"""Two processes train what one does: the same global batches, the same losses, the same weights (gloo, on a CPU)."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tests.tiny_model import records, tiny_trainer

OBJECTIVES = ("dpo", "kto", "grpo")
GLOBAL_MICRO_BATCH = 4
LEARNING_RATE = 3e-3


def train(folder: Path, world_size: int) -> None:
    """Train every objective with the global micro-batch spread over the processes, and keep the results."""
    for objective in OBJECTIVES:
        trainer = tiny_trainer(
            folder / objective,
            num_examples=24,
            objective=objective,
            reference="lookahead",
            sync_every=2,
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=GLOBAL_MICRO_BATCH // world_size,
            gradient_accumulation_steps=2,
            eval_dataset=records(objective, 8, seed=5),
        )
        trainer.train()
        evaluation = trainer.evaluate()["eval_loss"]
        if trainer.args.process_index == 0:
            lines = trainer.state.log_history
            losses = torch.tensor([*(line["loss"] for line in lines if "loss" in line), evaluation])
            weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
            distributed = torch.nn.parallel.DistributedDataParallel
            kept = {"losses": losses, "weights": weights, "ddp": isinstance(trainer.model_wrapped, distributed)}
            torch.save(kept, folder / f"{objective}.pt")


def rank(index: int, run: Callable[[Path, int], None], folder: str, port: int) -> None:
    os.environ |= {
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    run(Path(folder), 2)
    torch.distributed.destroy_process_group()


def in_two_processes(run: Callable[[Path, int], None], folder: Path) -> None:
    """Call ``run(folder, 2)`` in each of two processes that can reach each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(rank, (run, str(folder), port), nprocs=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folders = {size: tmp_path_factory.mktemp(f"processes{size}") for size in (1, 2)}
    train(folders[1], world_size=1)
    in_two_processes(train, folders[2])
    return folders


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_give_the_losses_and_weights_of_one(runs: dict[int, Path], objective: str):
    one, two = (torch.load(runs[size] / f"{objective}.pt") for size in (1, 2))
    assert (one["ddp"], two["ddp"]) == (False, True)
    # Ranks add up in another order than a batch does: float32 roundings of the losses (8e-8 to 1.3e-7 were seen) ...
    rounding = 16 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(two["losses"], one["losses"], rtol=rounding, atol=rounding)
    # ... and of the gradients, which move a weight by far less than one update, of the learning rate's size, would.
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=LEARNING_RATE / 1024)
    assert one["losses"].unique().numel() > 1
