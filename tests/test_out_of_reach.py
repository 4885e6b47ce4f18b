"""Two processes (gloo): a file on the disk of one alone, and a process that no longer answers, end the run on both."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from transformers import TrainerCallback

from humanline_fused.training.run.manifest import MANIFEST, seal
from humanline_fused.training.run.process_group import waited_in_vain
from tests.ranks import SaveOnce, on_ranks
from tests.tiny_model import tiny_trainer

NAME = "checkpoint-2"


def refused(said: str, **settings: object) -> None:
    with pytest.raises(ValueError, match=said):
        tiny_trainer("run", num_examples=8, reference="copy", max_steps=3, **settings).train()


def disks(folder: Path, world_size: int) -> None:
    """Every process has a working directory of its own, in which ``run`` is on its own disk."""
    rank = int(os.environ["RANK"])
    mine = folder / f"disk {rank}"
    mine.mkdir()
    os.chdir(folder)
    tiny_trainer("run", num_examples=8, reference="copy", max_steps=2, callbacks=[SaveOnce(2)]).train()
    dist.barrier()
    os.chdir(mine)
    refused(r"save_on_each_node=True; process 1 on .* does not see run/\.lock of the first one", save_strategy="steps")
    shutil.rmtree("run", ignore_errors=True)
    tiny_trainer("run", num_examples=8, reference="copy", max_steps=1).train()  # it saves nothing
    shutil.rmtree("run", ignore_errors=True)

    copied = Path("run", NAME)
    shutil.copytree(folder / "run" / NAME, copied)
    (copied / f"rng_state_{1 - rank}.pth").unlink()  # the other process wrote it, on its disk
    list_files(copied)
    resumed = tiny_trainer("run", num_examples=8, reference="copy", max_steps=3, resume_from_checkpoint="auto")
    resumed.train()
    assert resumed.state.global_step == 3

    for name in ("rng_state_1.pth", "optimizer.pt"):
        if rank == 1:
            (copied / name).unlink()
            if name == "rng_state_1.pth":
                list_files(copied)  # no list of a disk has the file
        dist.barrier()
        said = rf"expected a checkpoint that all processes see whole; for process 1 on .*, {name} is missing"
        refused(said, resume_from_checkpoint="auto")


def list_files(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    seal(folder)


class Stop(TrainerCallback):
    """Stops the second process in the second step, so that the first one hears nothing from it."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1 and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGSTOP)


def silent(folder: Path, world_size: int) -> None:
    """Both processes end by themselves: long before the half hour of a process group, and before the tests' alarm."""
    pids: list[Any] = [None] * world_size
    trainer = tiny_trainer(folder / "silent", num_examples=8, max_steps=4, ddp_timeout=4, callbacks=[Stop()])
    dist.all_gather_object(pids, os.getpid())
    with pytest.raises(RuntimeError) as failed:
        trainer.train()
    assert waited_in_vain(failed.value), repr(failed.value)
    if trainer.args.process_index == 0:
        os.kill(pids[1], signal.SIGCONT)
    (folder / f"silent {trainer.args.process_index}").write_text(str(trainer.state.global_step))
    os._exit(0)  # the group cannot be left together


@pytest.mark.parametrize(
    ("text", "waited"),
    [
        ("[gloo/transport/tcp/unbound_buffer.cc:79] Timed out waiting 4000ms for recv operation", True),
        ("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1", True),
        ("Application timeout caused pair closure", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_an_error_of_waiting_is_told_from_others(text: str, waited: bool):
    assert waited_in_vain(RuntimeError(text)) == waited


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    on_ranks(made, (disks, 2), (silent, 2))
    return made


def test_a_file_that_a_process_does_not_see_is_refused_on_all(folder: Path):
    assert (folder / "disk 1" / "run" / NAME).is_dir()


def test_a_process_that_no_longer_answers_ends_the_others_within_ddp_timeout(folder: Path):
    assert [(folder / f"silent {rank}").read_text() for rank in range(2)] == ["1", "1"]
