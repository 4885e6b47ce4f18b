"""Resume runs from what a kill at their n-th write or step leaves: ``python -m tests.killed_run FOLDER``.

What SIGKILL leaves of a run is its folder. So a run is not killed: at an event it copies its folder, in which a file
that it was about to write is cut off, and goes on. Each copy then takes the place of the run, and a new process resumes
it. Making an existing folder or removing a missing one is not an event, because the disk then looks as for a kill at
the next event.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers.modeling_utils
from transformers import TrainerCallback, set_seed

from tests.disk import do_not_wait_for_the_disk
from tests.forked import forked
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
    """Copies the run's folder as a kill would leave it: within a file write, before another write, or after a step.

    Args:
        folder: the run's folder.
        copies: where its copies go, each under the number of its event.
        at: the events, counted from 1.
    """

    def __init__(self, folder: Path, copies: Path, at: range) -> None:
        self.folder, self.copies, self.at = folder, copies, at
        self.events = 0
        self.copying = False

    def event(self, path: Any = None) -> None:
        if self.copying:
            return
        self.events += 1
        if self.events not in self.at:
            return
        self.copying = True
        copy = self.copies / str(self.events)
        copy.mkdir(parents=True)
        if self.folder.exists():
            shutil.copytree(self.folder, copy / "run")
        if path is not None:
            written = Path(path if isinstance(path, str | os.PathLike) else path.name)
            (copy / "run" / written.relative_to(self.folder)).write_bytes(b"cut off")
        self.copying = False

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


def run(folder: Path, objective: str, reference: str, killer: Killer | None = None) -> None:
    """Run, resuming from an existing checkpoint if there is one."""
    if killer:
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
        callbacks=[killer] if killer else [],
        resume_from_checkpoint="auto",
    )
    trainer.train()
    trainer.save_model()


def outcome(folder: Path) -> tuple[bytes, list[Any]]:
    """Return the final weights, and every logged loss with its step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [[line["step"], line.get("loss"), line.get("eval_loss")] for line in lines if "train_runtime" not in line]
    return (folder / "model.safetensors").read_bytes(), logged


def resumed(here: Path, every: int) -> dict[str, bool]:
    """Return by run and event whether the run that is resumed from a kill there equals the uninterrupted one.

    Args:
        here: an empty folder.
        every: distance of two kills in events; the two runs begin at different ones.
    """
    tiny_model().save_pretrained(here / "warm")  # the first save of a process compiles the renaming of weights
    equal = {}
    for first, (objective, reference) in enumerate((("kto", "lookahead"), ("dpo", "copy"))):
        name = f"{objective} {reference}"
        folder, copies = here / name, here / f"{name}, killed"
        killer = Killer(folder, copies, range(1 + first % every, sys.maxsize, every))
        forked(run, folder, objective, reference, killer)
        whole = outcome(folder)
        for copy in sorted(copies.iterdir(), key=lambda copy: int(copy.name)):
            shutil.rmtree(folder)
            if (copy / "run").exists():
                (copy / "run").rename(folder)
            forked(run, folder, objective, reference)
            equal[f"{name}, event {copy.name}"] = outcome(folder) == whole
    return equal


if __name__ == "__main__":
    torch.set_num_threads(1)
    do_not_wait_for_the_disk()
    print(json.dumps(resumed(Path(sys.argv[1]), every=1), indent=1))
