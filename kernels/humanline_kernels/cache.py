"""Bytes of rows in flight that a GPU's L2 cache still holds at their second read. Imports no Triton."""

from typing import NamedTuple

import torch
from torch import Tensor

from humanline_kernels.tiles import one_launch_programs

MEASURED: dict[str, int] = {}
"""Bytes, by the device's name (``torch.cuda.get_device_name``). No device has been measured."""

IN_TWO_PARTITIONS = {(8, 0), (9, 0), (10, 0), (10, 3)}
"""Compute capabilities of A100, H100 and H200, B200, and B300.

A multiprocessor reads through the partition next to it, so data of the other partition may be held twice.
"""


class HeldRows(NamedTuple):
    """Bytes of rows in flight, and where the number is from."""

    nbytes: int
    why: str


def held_rows(name: str, l2_bytes: int, capability: tuple[int, int]) -> HeldRows:
    """The measured number, or a model's.

    >>> held_rows("NVIDIA H100 80GB HBM3", 50 * 2**20, (9, 0)).nbytes // 2**20
    25
    """
    if name in MEASURED:
        return HeldRows(MEASURED[name], "measured")
    if capability in IN_TWO_PARTITIONS:
        return HeldRows(l2_bytes // 2, "one of two partitions of L2: a model, not measured on this device")
    return HeldRows(int(0.6 * l2_bytes), "60 % of L2, the rest for writes: a model, not measured on this device")


def held_rows_on(device: torch.device) -> HeldRows:
    """:func:`held_rows` of a GPU."""
    found = torch.cuda.get_device_properties(device)
    return held_rows(found.name, found.L2_cache_size, (found.major, found.minor))


def num_programs(logits: Tensor) -> int:
    """Rows of logits [..., V] that one launch reads twice at once, on their device; 0 where two launches are faster."""
    if logits.device.type != "cuda":
        return 2  # for the interpreter: enough to test that programs share the rows
    multiprocessors = torch.cuda.get_device_properties(logits.device).multi_processor_count
    held = held_rows_on(logits.device).nbytes
    return one_launch_programs(logits.shape[-1], logits.element_size(), held, multiprocessors)
