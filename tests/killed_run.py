"""Kill runs at their n-th write or step and resume them: ``python -m tests.killed_run FOLDER``.

One process imports everything and forks a child for every run, so a kill costs a run but not an import. By default it
kills at every third event, with an offset between the two runs; ``KILL_EVERY=1`` kills at every event. Making an
existing folder or removing a missing one is not an event, because the disk then looks as for a kill at the next event.
"""

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers.modeling_utils
from transformers import TrainerCallback, set_seed

from tests.disk import do_not_wait_for_the_disk
from tests.tiny_model import records, tiny_model, tiny_trainer

WRITES = [
    (torch, "save"),
    (os, "makedirs"),
    (os, "rename"),
    (os, "replace"),
    (shutil, "rmtree"),
    (transformers.modeling_utils, "safe_save_file"),
]


class Killer(TrainerCallback):
    """Sends SIGKILL at the ``at``-th event: within a file write, just before another write, or after a step."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.events = 0

    def event(self, path: Any = None) -> None:
        self.events += 1
        if self.events == self.at:
            if path is not None:
                Path(path if isinstance(path, str | os.PathLike) else path.name).write_bytes(b"cut off")
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.event()

    def watch(self) -> None:
        for module, name in WRITES:
            setattr(module, name, self._watched(name, getattr(module, name)))

    def _watched(self, name: str, write: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            idle = {"makedirs": True, "rmtree": False}.get(name)
            if idle is None or os.path.isdir(args[0]) != idle:
                self.event(args[1] if name in ("save", "safe_save_file") else None)
            return write(*args, **kwargs)

        return watched


def run(folder: Path, objective: str, reference: str, kill_at: int = 0) -> None:
    """Run, resuming from an existing checkpoint if there is one."""
    killer = Killer(kill_at)
    killer.watch()
    set_seed(0)
    trainer = tiny_trainer(
        folder,
        objective=objective,
        reference=reference,
        sync_every=3,
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset=records(objective, 4, seed=5),
        disable_dropout=False,
        clamp=False,
        model=tiny_model(attention_dropout=0.1),
        callbacks=[killer],
        resume_from_checkpoint="auto",
    )
    trainer.train()
    trainer.save_model()
    (folder / "events").write_text(str(killer.events))


def forked(folder: Path, objective: str, reference: str, kill_at: int = 0) -> int:
    """Return the signal that ended the run, or 0."""
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        transformers.utils.logging.disable_progress_bar()
        try:
            run(folder, objective, reference, kill_at)
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the run in {folder} failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def outcome(folder: Path) -> tuple[bytes, list[Any]]:
    """Return the final weights, and every logged loss with its step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [[line["step"], line.get("loss"), line.get("eval_loss")] for line in lines if "train_runtime" not in line]
    return (folder / "model.safetensors").read_bytes(), logged


def main(folder: Path) -> None:
    """Print for every kill its position and whether the resumed run equals the uninterrupted one."""
    stride = int(os.environ.get("KILL_EVERY", "3"))
    tiny_model().save_pretrained(folder / "warm")  # the first save of a process compiles the renaming of weights
    gc.freeze()  # exclude imported objects from the children's garbage collection
    for first, (objective, reference) in enumerate((("kto", "lookahead"), ("dpo", "copy"))):
        whole = folder / f"{objective}-{reference}"
        assert forked(whole, objective, reference) == 0
        events = int((whole / "events").read_text())
        for kill_at in range(1 + first % stride, events + 1, stride):
            broken = folder / f"{objective}-{reference}-{kill_at}"
            killed = forked(broken, objective, reference, kill_at) == signal.SIGKILL
            forked(broken, objective, reference)
            equal = outcome(broken) == outcome(whole)
            print(json.dumps({"run": broken.name, "killed": killed, "equal": equal}))
            shutil.rmtree(broken)


if __name__ == "__main__":
    torch.set_num_threads(1)
    do_not_wait_for_the_disk()
    main(Path(sys.argv[1]))
