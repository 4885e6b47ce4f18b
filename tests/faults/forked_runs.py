"""Commands in forked children of one warmed-up process: a fault costs a run, but no import of torch."""

import gc
import json
import os
import random
import select
import signal
import sys
import threading
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tqdm.auto
import tqdm.std

from humanline_fused.cli import main
from humanline_fused.looking import result
from tests.tiny_model import records, tiny_model, tiny_tokenizer

PATIENCE = 120.0
"""Seconds after which a command counts as hanging."""

HUNG = 255
"""Status of a command that was ended because it hung."""

COMMON: dict[str, Any] = {
    "model": "start",
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "max_steps": 6,
    "learning_rate": 3e-3,
    "max_length": 32,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "use_cpu": True,
    "disable_tqdm": True,
    "sync_every": 2,
    "resume_from_checkpoint": "auto",
}
FORMS: dict[str, dict[str, Any]] = {
    "pairs, look-ahead, best model": {
        "objective": "dpo",
        "beta": 0.5,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "save_total_limit": 2,
    },
    "labels, copied reference": {"objective": "kto", "reference": "copy", "save_total_limit": 2},
    "rounds, copied reference": {
        "objective": "grpo",
        "reference": "copy",
        "reward": "tests.faults.forked_runs:reward",
        "rollout_every": 2,
        "num_generations": 4,
        "max_completion_length": 4,
        "per_device_train_batch_size": 4,
        "rollout_batch_size": 8,
        "save_total_limit": 1,
        "temperature": 1.5,
    },
}
"""Settings of the runs: between them they write everything that a run can write."""


def reward(prompts: list[Any], completions: list[str], **columns: list[Any]) -> list[float]:
    """Reward of a completion: a number that depends on each of its words."""
    return [float(sum(map(ord, completion)) % 7) for completion in completions]


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: exit status; −n after signal n.
        out, err: what it printed.
        seconds: CPU time of its main thread, as far as it was seen.
    """

    status: int
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> str:
        """Everything printed."""
        return f"{self.out}{self.err}"


def write_inputs(folder: Path) -> None:
    """Write the model, data and settings that all runs begin with."""
    torch.set_num_threads(1)
    tiny_model(hidden_size=16, intermediate_size=16, num_hidden_layers=1).save_pretrained(folder / "start")
    tiny_tokenizer().save_pretrained(folder / "start")
    for form, settings in FORMS.items():
        objective, name = settings["objective"], name_of(form)
        rows, held_out = records(objective, 10), records(objective, 4, seed=5)
        if "reward" in settings:
            rows = [{"prompt": row["prompt"]} for row in records("dpo", 6)]
        for part, given in ((name, rows), (f"{name}-eval", held_out)):
            (folder / f"{part}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in given))
        data = {"dataset": f"{name}.jsonl", "eval_dataset": f"{name}-eval.jsonl"}
        (folder / f"{name}.yaml").write_text(json.dumps(COMMON | settings | data))


def name_of(form: str) -> str:
    """Return the first word of a form, which its files are named by."""
    return form.split(",")[0]


def arguments(form: str, output_dir: str, **settings: Any) -> list[str]:
    """Return the command that trains, or continues, a run."""
    changed = [f"--{name}={value}" for name, value in settings.items()]
    return ["train", f"--config={name_of(form)}.yaml", f"--output_dir={output_dir}", *changed]


def forked(here: Path, command: list[str], stop: tuple[signal.Signals, float] | None = None) -> Ended:
    """Run a command in a child whose current folder is ``here``.

    Args:
        stop: a signal, and after how many seconds of the child's CPU time it gets it.
    """
    gc.freeze()  # the child's garbage collection leaves the pages of imported objects alone
    child = os.fork()
    if child == 0:
        _run(here, command)
    seconds, watched = 0.0, os.pidfd_open(child)
    poll, slept = select.poll(), 0.0
    poll.register(watched, select.POLLIN)
    try:
        if stop:
            while (left := stop[1] - (seconds := _cpu_seconds(child))) > 0 and slept < PATIENCE:
                slept += max(left, 1e-3)
                if poll.poll(1e3 * max(left, 1e-3)):
                    break
            else:
                os.kill(child, stop[0])
        hung = not poll.poll(1e3 * PATIENCE)
        seconds = max(seconds, _cpu_seconds(child))
        if hung:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(watched)
    out, err = ((here / name).read_text(errors="replace") for name in ("out", "err"))
    return Ended(HUNG if hung else status, out, err, seconds)


def _run(here: Path, command: list[str]) -> None:
    """Run a command as a new process would, and end."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(here)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        warnings.showwarning = lambda *warned: print(warnings.formatwarning(*warned), file=sys.stderr)  # not pytest's
        random.seed(0)
        for bars in (tqdm.std.tqdm, tqdm.auto.tqdm):  # their common lock may be held forever by a killed child
            bars.set_lock(threading.RLock())
        result.plot_runs = lambda folders: ["not drawn"]  # a second of CPU time for each run
        status = main(command)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:  # before the command, which ends with 130 itself
        status = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _cpu_seconds(process: int) -> float:
    """Return the CPU time of a process's main thread."""
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):
        return 0.0
