"""Weighted means of metrics between two log lines, and the file metrics.jsonl."""

import json
import re
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from humanline_fused.training.objectives.metrics import Weighted
from humanline_fused.training.run.json_lines import append, as_json, cut
from humanline_fused.training.run.writing import unwritten, writing

TIMES = re.compile(r"^seconds$|^time/|_runtime$|_per_second$")
"""Names of measured times and speeds in a log line."""


class Meter:
    """Sums (value, weight) by name on the device, with one transfer per log line."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def update(self, metrics: Mapping[str, Weighted]) -> None:
        """Add the sums and weights of one micro-batch."""
        for name, weighted in metrics.items():
            pair = torch.stack([torch.as_tensor(part).detach().float() for part in weighted])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def drain(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means since the last call, over all ranks by ``reduce``, without metrics of weight 0."""
        if not self.sums:
            return {}
        totals = reduce(torch.stack(list(self.sums.values()))).tolist()
        means = {name: value / weight for name, (value, weight) in zip(self.sums, totals, strict=True) if weight}
        self.sums = {}
        return means

    def state_dict(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the sums over all ranks. Collective."""
        totals = reduce(torch.stack(list(self.sums.values()))).cpu() if self.sums else ()
        return dict(zip(self.sums, totals, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device, world_size: int) -> None:
        """Continue from :meth:`state_dict`, on any number of ranks: each takes an equal part of the sums."""
        self.sums = {name: total.to(device) / world_size for name, total in state.items()}


class MetricsFile(TrainerCallback):
    """Writes every log line to ``metrics.jsonl``: ``step``, ``seconds`` since the start, and the metrics
    (null: not finite).

    A resumed run cuts the file to the lines that its checkpoint knows, and continues the seconds from there. If no step
    is left to take, all lines stay, and those that the end of the run repeats are not written again.

    Args:
        path: the file.
        fail: called with an OSError if a line cannot be written.
    """

    def __init__(self, path: Path, fail: Callable[[Exception], None]) -> None:
        self.path, self.fail = path, fail
        self.started: float | None = None
        self.repeated: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = None
        with writing(self.path, self.path.parent):
            if state.is_world_process_zero:
                self._continue(state)

    def _continue(self, state: Any) -> None:
        """Cut the file to the lines before the coming step."""
        known = sum(line.get("step") == state.global_step for line in state.log_history)
        ended, at_step = state.global_step >= state.max_steps, count()

        def keep(line: dict[str, Any]) -> bool:
            step = line.get("step", 0)
            return step < state.global_step or (step == state.global_step and (next(at_step) < known or ended))

        kept = cut(self.path, keep)
        self.repeated = [_without_times(line) for line in kept if line.get("step") == state.global_step][known:]
        self.started = time.monotonic() - max((line.get("seconds", 0.0) for line in kept), default=0.0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.started is None:
            return
        seconds = round(time.monotonic() - self.started, 4)
        line = {"step": state.global_step, "seconds": seconds, **(logs or {})}
        if (content := _without_times(json.loads(as_json(line)))) in self.repeated:
            self.repeated.remove(content)
            return
        try:
            append(self.path, [line])
        except OSError as error:
            self.started = None
            self.fail(unwritten(error, self.path, self.path.parent))


def _without_times(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a log line without what a clock measured, which is another time when the line is repeated."""
    return {name: value for name, value in line.items() if not TIMES.search(name)}
