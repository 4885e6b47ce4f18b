"""The most memory that training held at once."""

import re
from pathlib import Path

import torch

MIB = 2**20


class PeakMemory:
    """On a GPU what its allocator had handed out at the most. Elsewhere what the process had resident at the most
    (``VmHWM``), less what it had resident when this was made: the interpreter, the libraries, the data.

    To be made before the model is: weights, gradients, the optimizer's state, a reference and every activation count.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            self.before = _status("VmRSS")

    def mib(self) -> float:
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.before) / MIB
        return (_status("VmHWM") - self.before) / MIB


def _status(name: str) -> int:
    """Bytes. Unlike ``ru_maxrss``, a process does not inherit them from the one that started it."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"expected {name} in /proc/self/status, found none")
    return 1024 * int(found[1])
