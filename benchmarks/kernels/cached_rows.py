"""How many bytes of rows a GPU's L2 cache holds until their second read, by the times of the launches that read twice.

These are GRPO's one launch, and that of a head's chunk: scores and dlogits, beside the two launches that it replaces. A
launch has as many rows in flight as programs. More hide latency better, until the cache loses a row before it is read
again: the fastest number is what ``humanline_kernels`` may take for the device.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.batches import Batch, make_batch
from benchmarks.measure import MIB, Call, Times, give_back_memory, interleaved_times
from benchmarks.results import read
from benchmarks.tables import Line, columns, piped

VOCABULARIES, TOY_VOCABULARIES = (128256, 256000, 32000), (504,)
EIGHTHS = 8  # of the most rows that the multiprocessors run at once
B, T = 4, 1024
GRPO, HEAD, HEAD_IN_TWO = "GRPO", "head's chunk", "head's chunk in two launches"


@dataclass(frozen=True)
class CachedRows:
    """One number of rows in flight. No time where a GPU is missing or the launch failed."""

    held_mib: float  # of rows in flight that are read twice; in two launches none is held
    launch: str
    V: int
    programs: int
    ms_20: float | None = None
    ms_median: float | None = None
    ms_80: float | None = None
    note: str = ""


def measure(device: torch.device, repeats: int, toy: bool, deadline: float) -> list[CachedRows]:
    """Rows of every vocabulary, or none if the time has come before they are all there."""
    rows: list[CachedRows] = []
    for V in TOY_VOCABULARIES if toy else VOCABULARIES:
        if time.monotonic() > deadline:
            return []
        rows += _of_vocabulary(V, device, repeats, (2, 3) if toy else (B, T), timed=not toy)
        give_back_memory(device)
    return rows


def _of_vocabulary(V: int, device: torch.device, repeats: int, size: tuple[int, int], timed: bool) -> list[CachedRows]:
    from humanline_kernels.tiles import one_launch_per_multiprocessor

    batch = make_batch(*size, V, torch.bfloat16, device, masked=0)
    row_bytes = V * batch.logits.itemsize
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if timed else EIGHTHS
    most = one_launch_per_multiprocessor(row_bytes) * multiprocessors
    counts = [most * eighth // EIGHTHS for eighth in range(1, EIGHTHS + 1)]
    rows: list[CachedRows] = []
    for calls in (_of_grpo(batch, counts), _of_head(batch, counts)):
        times = interleaved_times([call for _, _, call in calls], repeats, device)
        for (launch, programs, _), taken in zip(calls, times, strict=True):
            held = 0.0 if launch == HEAD_IN_TWO else round(programs * row_bytes / MIB, 3)
            rows.append(_row(CachedRows(held, launch, V, programs), taken, timed))
    return rows


Launch = tuple[str, int, Call]
"""Name, programs, and call."""


def _of_grpo(batch: Batch, counts: Sequence[int]) -> list[Launch]:
    from humanline_kernels.grpo_one_launch import grpo_one_launch

    advantages = batch.advantages[:, None].expand(batch.target_ids.shape)
    softmax, bounds = (1.0, None, 1.0), (0.2, 0.2, 0.04, -1.5, 1.5)
    inputs = batch.logits, batch.ref_logits, None, batch.target_ids, batch.loss_mask, None, advantages, None
    return [(GRPO, count, Call(partial(grpo_one_launch, *inputs, count, *softmax, *bounds))) for count in counts]


def _of_head(batch: Batch, counts: Sequence[int]) -> list[Launch]:
    """Written over the batch's logits, which takes as long whatever they are."""
    from humanline_fused.autograd import epilogue
    from humanline_fused.softmax import Softmax
    from humanline_kernels.score_and_dlogits import score_and_write_dlogits_

    rows, ids = batch.logits.flatten(0, 1), batch.target_ids.flatten()

    def in_two_launches() -> None:
        scores = epilogue.score_rows(rows, ids, Softmax(), False)
        epilogue.write_dlogits_(rows, ids, Softmax(), scores, torch.ones_like(scores.logp), None)

    calls = [(HEAD, n, Call(partial(score_and_write_dlogits_, rows, ids, None, n, 1.0, 1.0))) for n in counts]
    return [*calls, (HEAD_IN_TWO, len(rows), Call(in_two_launches))]


def _row(row: CachedRows, taken: Times | str, timed: bool) -> CachedRows:
    if isinstance(taken, str):
        return replace(row, note=taken)
    return replace(row, ms_20=taken.low, ms_median=taken.median, ms_80=taken.high) if timed else row


def fastest(rows: Sequence[CachedRows], launch: str, V: int) -> CachedRows | None:
    """The number of rows in flight with the least time."""
    return min(
        (row for row in rows if (row.launch, row.V) == (launch, V) and row.ms_median is not None),
        key=lambda row: row.ms_median or 0.0,
        default=None,
    )


def said(rows: Sequence[CachedRows]) -> str:
    """For a terminal."""
    return columns(_lines(rows))


def markdown(path: Path, name: str, words: Sequence[str] = ()) -> str:
    facts, rows = read(path, CachedRows)
    where = f"{facts['machine']}; torch {facts['torch']}; triton {facts['triton']}"
    return f"{piped(_lines(rows))}\n\nRows of one launch in flight, `{name}`: {where}."


def _lines(rows: Sequence[CachedRows]) -> list[Line]:
    best = {(row.launch, row.V): fastest(rows, row.launch, row.V) for row in rows}
    return [
        {
            "launch": row.launch,
            "V": str(row.V),
            "rows in flight": str(row.programs),
            "MiB": f"{row.held_mib:.1f}",
            "ms": row.note or ("" if row.ms_median is None else f"{row.ms_median:.3f}"),
            "": "fastest" if row is best[row.launch, row.V] else "",
        }
        for row in rows
    ]
