"""One variant's run, in this process: ``python -m benchmarks.training.worker`` with the arguments of :func:`main`."""

import itertools
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from benchmarks.measure import MIB, PeakMemory, first_line
from benchmarks.peers.trainers import Task
from benchmarks.results import write
from benchmarks.training.runs import Run
from benchmarks.training.setting import Setting, Work, tokens_of
from benchmarks.training.variants import VARIANTS, Variant


class BodyTokens:
    """Counts the tokens that a model's body computes, and its copies': padding counts, and what a mask hides."""

    def __init__(self, model: Any) -> None:
        self.scored = self.trained = 0

        def count(module: nn.Module, inputs: tuple[Any, ...], ids: Tensor) -> None:
            if torch.is_grad_enabled():
                self.trained += inputs[0].numel()
            else:
                self.scored += inputs[0].numel()

        model.get_input_embeddings().register_forward_hook(count)  # a function: a copy of the model has the same one


class StepLog(TrainerCallback):
    """The times at which the steps ended, their tokens, and their log lines.

    A step is timed from the end of the one before it, so that a trainer's work between two steps is in it. Training
    ends with the last timed step, before the last of the plan: a look-ahead has nothing to score in that one.
    """

    def __init__(self, device: torch.device, tokens: BodyTokens, warm_up: int, timed: int) -> None:
        self.device, self.tokens = device, tokens
        self.warm_up, self.steps = warm_up, warm_up + timed
        self.ends: list[tuple[float, float, int, int]] = []
        self.logs: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ends.append((time.perf_counter(), time.process_time(), self.tokens.scored, self.tokens.trained))
        control.should_training_stop |= len(self.ends) == self.steps

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.logs.append(dict(logs))

    def of_steps(self) -> tuple[list[float], list[float], list[int], list[int]]:
        """Seconds of the wall's clock and of the process, tokens scored and tokens trained, of every timed step."""
        between = [
            [after - before for before, after in zip(*ends, strict=True)] for ends in itertools.pairwise(self.ends)
        ]
        wall, process, scored, trained = map(list, zip(*between[self.warm_up - 1 :], strict=True))
        return wall, process, scored, trained

    def logged(self, name: str) -> list[float]:
        return [float(log[name]) for log in self.logs if name in log]


def train(variant: Variant, setting: Setting, device: torch.device, timed: int, turn: int = 0) -> Run:
    """Train for the steps of the warm-up and so many timed ones."""
    steps = setting.warm_up + timed + 1
    variant.preload()
    tokenizer, records = setting.tokenizer(), setting.records(steps)
    dealt = setting.steps_of(records)
    in_order = [record for step in dealt for record in step]
    run = blank(variant, setting, turn)
    peak = PeakMemory(device)
    with tempfile.TemporaryDirectory() as folder:
        try:
            model = setting.model(device)
            log = StepLog(device, BodyTokens(model), setting.warm_up, timed)
            weights = sum(parameter.nbytes for parameter in model.parameters()) / MIB
            arguments = setting.arguments(folder, steps, device)
            trainer = variant.build(Task(model, tokenizer, setting.objective, records, in_order, run.T, arguments))
            trainer.add_callback(log)
            trainer.train()
            wall, process, scored, trained = log.of_steps()
        except Exception as error:
            return replace(run, note=first_line(error))
    return replace(
        run,
        weights_mib=weights,
        seconds=wall,
        cpu_seconds=process if device.type == "cpu" else [],
        tokens=[tokens_of(step) for step in dealt[setting.warm_up : -1]],
        scored=scored,
        trained=trained,
        peak_mib=peak.mib(),
        loss=log.logged("loss"),
        grad_norm=log.logged("grad_norm"),
        logps_chosen=log.logged("logps/chosen"),
        logps_rejected=log.logged("logps/rejected"),
    )


def blank(variant: Variant, setting: Setting, turn: int) -> Run:
    """A run without figures."""
    dtype = str(setting.dtype).removeprefix("torch.")
    sizes = setting.examples, setting.lengths.longest, setting.V
    work = setting.objective, str(setting.lengths), setting.accumulation
    return Run(variant.name, turn, setting.name, dtype, *sizes, *work)


def main(variant: str, model: str, objective: str, lengths: str, device: str, timed: str, turn: str, file: str) -> None:
    """Train a variant by its key on a work, and write the run to a file."""
    chosen = next(known for known in VARIANTS if known.key == variant)
    setting = Work(model, objective, lengths).setting
    write(Path(file), Run, {}, [train(chosen, setting, torch.device(device), int(timed), int(turn))])


if __name__ == "__main__":
    main(*sys.argv[1:])
