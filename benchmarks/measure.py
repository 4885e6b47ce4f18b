"""Milliseconds and bytes of one call, and the peak memory of a process."""

import contextlib
import itertools
import json
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

MIB = 2**20


@dataclass(frozen=True)
class Call:
    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None  # called before each time, and not measured


@dataclass(frozen=True)
class Times:
    """Milliseconds: the 20th, 50th and 80th percentile."""

    low: float
    median: float
    high: float
    host_bound: bool = False  # in most turns the device waited for the host to queue the call


def interleaved_times(calls: list[Call], repeats: int, device: torch.device) -> list[Times | str]:
    """Each call's times, or the error that it raised, which ends its turns.

    The calls take turns, so that a disturbance of the machine meets them all, and each turn has an order of its own:
    a call pays for the memory that the one before it left to be given back.
    """
    clock = _Events(device) if device.type == "cuda" else _wall_clock
    shuffled = random.Random(0)
    samples: list[list[Sample]] = [[] for _ in calls]
    errors: dict[int, str] = {}
    for turn in range(repeats + 1):
        for i in shuffled.sample(range(len(calls)), len(calls)):
            if i in errors:
                continue
            try:
                calls[i].prepare()
                sample = clock(calls[i].run)
                if turn:  # the first turn warms up
                    samples[i].append(sample)
            except Exception as error:
                errors[i] = first_line(error)
            if i in errors:
                give_back_memory(device)  # the error's traceback held memory until here
    return [errors.get(i) or _times(taken) for i, taken in enumerate(samples)]


Sample = tuple[float, bool]  # milliseconds, and whether the device waited for the host


class _Events:
    """A GPU's own clock.

    Before each call a buffer of sixteen times the L2 cache is read: no call finds its inputs where the last one left
    them, and the lines it evicts need no write-back (those of a zeroed buffer would). Then the device sleeps while the
    host queues the call's launches; the time to queue the rest is measured with them.
    """

    SLEEP = 4_000_000  # clock cycles: about 2 ms, as long as the host needs for hundreds of launches

    def __init__(self, device: torch.device) -> None:
        words = 16 * torch.cuda.get_device_properties(device).L2_cache_size // 4
        self.cold = torch.zeros(words, dtype=torch.int32, device=device)
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, run: Callable[[], object]) -> Sample:
        self.cold.amax()
        torch.cuda._sleep(self.SLEEP)
        self.start.record()
        run()
        self.end.record()
        host_bound = self.start.query()
        self.end.synchronize()
        return self.start.elapsed_time(self.end), host_bound


def _wall_clock(run: Callable[[], object]) -> Sample:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start), False


def _times(samples: list[Sample]) -> Times:
    milliseconds, host_bound = zip(*samples, strict=True)
    return Times(*percentiles(milliseconds), 2 * sum(host_bound) > len(samples))


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 20th, the 50th and the 80th; of one value, itself."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, _, _, high = statistics.quantiles(values, n=5, method="inclusive")
    return low, statistics.median(values), high


def first_line(error: BaseException) -> str:
    """Of the first cause: Triton wraps an error of a kernel once for each function that it was called in."""
    while error.__cause__:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:60]}"


def give_back_memory(device: torch.device) -> None:
    """To the device: blocks that the allocator keeps of one provider may be too small for the next one."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes the call held at once beyond those held before, by the allocator's own record."""
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
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return max(itertools.accumulate(changes, initial=0))


class PeakMemory:
    """The most memory that training held at once.

    On a GPU the allocator's peak. Elsewhere the process's resident peak (``VmHWM``), less its resident memory when this
    was made: the interpreter, the libraries, the data. Make it before the model: weights, gradients, the optimizer's
    state, a reference and every activation count.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            self.before = _resident("VmRSS")

    def mib(self) -> float:
        on_gpu = self.device.type == "cuda"
        most = torch.cuda.max_memory_allocated(self.device) if on_gpu else _resident("VmHWM")
        return (most - self.before) / MIB


def _resident(name: str) -> int:
    """Bytes. Unlike ``ru_maxrss``, a process does not inherit them from the one that started it."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"expected {name} in /proc/self/status, found none")
    return 1024 * int(found[1])


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
