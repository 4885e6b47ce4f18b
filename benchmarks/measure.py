"""Seconds, bytes and errors of one call."""

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Times:
    """Milliseconds: the 20th, 50th and 80th percentile."""

    low: float
    median: float
    high: float


def interleaved_times(calls: list[Callable[[], object]], repeats: int, device: torch.device) -> list[Times]:
    """Each call's times; the calls take turns, so that a disturbance of the machine meets them all."""
    samples: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, taken in zip(calls, samples, strict=True):
            _synchronize(device)
            start = time.perf_counter()
            call()
            _synchronize(device)
            if turn:  # the first turn warms up
                taken.append(1e3 * (time.perf_counter() - start))
    return [Times(*_percentiles(taken)) for taken in samples]


def _percentiles(samples: list[float]) -> tuple[float, float, float]:
    low, _, _, high = statistics.quantiles(samples, n=5, method="inclusive")
    return low, statistics.median(samples), high


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes the call held at once beyond what was there before, by the allocator's own record."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        record.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler announces itself on the file descriptor, past Python's ``sys.stderr``."""
    saved = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def relative_error(actual: Tensor, oracle: Tensor) -> float:
    """``‖actual − oracle‖ / ‖oracle‖``."""
    return ((actual.double() - oracle).norm() / oracle.double().norm()).item()
