"""One variant's run, in this process: ``python -m benchmarks.training.worker`` with the arguments of :func:`main`."""

import itertools
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.measure import MIB, PeakMemory, first_line
from benchmarks.peers.trainers import Task
from benchmarks.results import write
from benchmarks.training.runs import Run
from benchmarks.training.setting import SETTINGS, Setting, tokens_of
from benchmarks.training.variants import VARIANTS, Variant

WARM_UP = 2
"""Steps before the first that is timed: the optimizer's state and the look-ahead's first scores are made in them."""


class StepLog(TrainerCallback):
    """The times at which the steps ended, and their log lines.

    A step is timed from the end of the one before it, so that a trainer's work between two steps is in it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ends: list[tuple[float, float]] = []
        self.logs: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ends.append((time.perf_counter(), time.process_time()))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.logs.append(dict(logs))

    def seconds(self, clock: int) -> list[float]:
        """Of the steps between warm-up and the last one, in which a look-ahead has nothing left to score.

        Args:
            clock: 0 is the wall's, 1 the process's own.
        """
        between = [end[clock] - start[clock] for start, end in itertools.pairwise(self.ends)]
        return between[WARM_UP - 1 : -1]

    def logged(self, name: str) -> list[float]:
        return [float(log[name]) for log in self.logs if name in log]


def train(variant: Variant, setting: Setting, device: torch.device, timed: int, turn: int = 0) -> Run:
    """Train for so many timed steps, those of the warm-up and a last one."""
    steps = WARM_UP + timed + 1
    variant.preload()
    tokenizer, records = setting.tokenizer(), setting.records(steps)
    dealt = setting.steps_of(records)
    in_order = [record for step in dealt for record in step]
    run = blank(variant, setting, turn)
    peak = PeakMemory(device)
    with tempfile.TemporaryDirectory() as folder:
        log = StepLog(device)
        try:
            model = setting.model(device)
            weights = sum(parameter.nbytes for parameter in model.parameters()) / MIB
            arguments = setting.arguments(folder, steps, device)
            trainer = variant.build(Task(model, tokenizer, records, in_order, setting.T, arguments))
            trainer.add_callback(log)
            trainer.train()
        except Exception as error:
            return replace(run, note=first_line(error))
    return replace(
        run,
        weights_mib=weights,
        seconds=log.seconds(clock=0),
        cpu_seconds=log.seconds(clock=1) if device.type == "cpu" else [],
        tokens=[tokens_of(step) for step in dealt[WARM_UP:-1]],
        peak_mib=peak.mib(),
        loss=log.logged("loss"),
        grad_norm=log.logged("grad_norm"),
        logps_chosen=log.logged("logps/chosen"),
        logps_rejected=log.logged("logps/rejected"),
    )


def blank(variant: Variant, setting: Setting, turn: int) -> Run:
    """A run without figures."""
    dtype = str(setting.dtype).removeprefix("torch.")
    return Run(variant.name, turn, setting.name, dtype, setting.pairs, setting.T, setting.V)


def main(variant: str, setting: str, device: str, timed: str, turn: str, file: str) -> None:
    """Train a variant by its key in a setting by its name, and write the run to a file."""
    chosen = next(known for known in VARIANTS if known.key == variant)
    write(Path(file), Run, {}, [train(chosen, SETTINGS[setting], torch.device(device), int(timed), int(turn))])


if __name__ == "__main__":
    main(*sys.argv[1:])
