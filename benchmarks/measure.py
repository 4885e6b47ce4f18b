"""Milliseconds and bytes of one call."""

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


@dataclass(frozen=True)
class Call:
    """What is measured, and what has to be put right before each time without being measured."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Times:
    """Milliseconds: the 20th, 50th and 80th percentile."""

    low: float
    median: float
    high: float


def interleaved_times(calls: list[Call], repeats: int, device: torch.device) -> list[Times]:
    """Each call's times; the calls take turns, so that a disturbance of the machine meets them all."""
    clock = _Events(device) if device.type == "cuda" else _wall_clock
    samples: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, taken in zip(calls, samples, strict=True):
            call.prepare()
            milliseconds = clock(call.run)
            if turn:  # the first turn warms up
                taken.append(milliseconds)
    return [Times(*_percentiles(taken)) for taken in samples]


class _Events:
    """A GPU's own clock.

    Before each call a buffer of sixteen times the L2 cache is read: no call finds its inputs where the last one left
    them, the lines it evicts need no write-back (those of a zeroed buffer would), and the reading lasts long enough
    for the host to have queued the call's launches.
    """

    def __init__(self, device: torch.device) -> None:
        words = 16 * torch.cuda.get_device_properties(device).L2_cache_size // 4
        self.cold = torch.zeros(words, dtype=torch.int32, device=device)
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, run: Callable[[], object]) -> float:
        self.cold.amax()
        self.start.record()
        run()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end)


def _wall_clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _percentiles(samples: list[float]) -> tuple[float, float, float]:
    low, _, _, high = statistics.quantiles(samples, n=5, method="inclusive")
    return low, statistics.median(samples), high


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
