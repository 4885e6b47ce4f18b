"""Weighted means of metrics between two log lines, and the file metrics.jsonl."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from humanline_fused.training.objectives.metrics import Weighted
from humanline_fused.training.run.json_lines import append, cut


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


class MetricsFile(TrainerCallback):
    """Writes every log line to ``metrics.jsonl``: ``step``, ``seconds`` since the start, and the metrics
    (null: not finite).

    A resumed run truncates the file to its checkpoint's step and continues the seconds from there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        kept = cut(self.path, lambda line: line.get("step", 0) <= state.global_step and "train_runtime" not in line)
        self.started = time.monotonic() - max((line.get("seconds", 0.0) for line in kept), default=0.0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.started is None:
            return
        seconds = round(time.monotonic() - self.started, 4)
        append(self.path, [{"step": state.global_step, "seconds": seconds, **(logs or {})}])
