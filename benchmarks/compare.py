"""One comparison: answers first, then times in turns, then memory."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Batch, Case, Mode
from benchmarks.measure import Call, Times, first_line, give_back_memory, interleaved_times, peak_bytes
from benchmarks.oracle import Oracle
from benchmarks.providers import OURS, Provider
from benchmarks.results import Row

LARGEST_LOGP = 32.0
"""Nats; of the log-probs that :func:`benchmarks.cases.make_batch` gives rise to."""

VALUE_LIMIT = 1e-5
"""Relative error that a right value may have: a log-ratio is ten times smaller than its log-probs, which are rounded to
1e-6."""


def gradient_limit(dtype: torch.dtype) -> float:
    """Relative error that a right dlogits may have, in the targets' columns and in all others.

    An entry is rounded to half a unit in its last place, which beside the smallest number of that exponent is eps / 2
    (all targets of a batch may be such). A softmax has the absolute error of its exponent, which is a logit less lse:
    in float32 each of the two is rounded to at most eps / 2 of the largest log-prob.
    """
    return torch.finfo(dtype).eps / 2 + LARGEST_LOGP * torch.finfo(torch.float32).eps


WRONG, CHECKED, HOST_BOUND = "wrong answer", "checked, not timed", "host-bound"
TWO_LAUNCHES = "two launches here"
FINAL = {"", WRONG, CHECKED, HOST_BOUND, TWO_LAUNCHES}
"""Notes that another try would not change; all others are errors."""


def compare(case: Case, mode: Mode, batch: Batch, providers: Sequence[Provider], repeats: int) -> list[Row]:
    """One row for each provider that stands for the case. Whose answer is wrong, or missing, gets no time.

    Where one launch is asked for and two are made, nobody is timed: it would be another case under this one's name.
    """
    device = batch.logits.device
    inputs, restore = batch, _nothing
    if case.inplace_gradient:
        inputs = replace(batch, logits=batch.logits.clone())
        restore = partial(inputs.logits.copy_, batch.logits)
    providers = [provider for provider in providers if case.name in provider.cases]
    skipped: list[Row] = []
    if case.one_launch and not fits_one_launch(batch.logits):
        skipped = [replace(_row(p, case, mode, batch), note=TWO_LAUNCHES) for p in providers if p.name == OURS]
        providers = [provider for provider in providers if not provider.timed]
    oracle = Oracle(case, mode, batch)
    limits = VALUE_LIMIT, gradient_limit(batch.logits.dtype)
    calls: dict[Provider, Call] = {}
    rows: dict[Provider, Row] = {}
    for provider in providers:
        answer = partial(provider.answer, case, mode, inputs)
        row = _row(provider, case, mode, batch)
        try:
            restore()
            row = replace(row, **dict(zip(("value_error", "gradient_error"), oracle.errors(answer()), strict=True)))
        except Exception as error:  # a peer that runs out of memory, or that does not compile here
            rows[provider] = replace(row, note=first_line(error))
            continue
        finally:
            give_back_memory(device)
        wrong = any(
            not error <= limit
            for error, limit in zip((row.value_error, row.gradient_error), limits, strict=True)
            if error is not None
        )
        rows[provider] = replace(row, note=WRONG if wrong else "" if provider.timed else CHECKED)
        if not rows[provider].note:
            calls[provider] = Call(answer, prepare=restore)
    times, ceiling_ms = _times(case, mode, inputs, calls, repeats)
    for provider, taken in times.items():
        rows[provider] = replace(rows[provider], **_figures(calls[provider], taken, ceiling_ms, device))
    return [*skipped, *rows.values()]


def _figures(call: Call, taken: Times | str, ceiling_ms: float | None, device: torch.device) -> dict[str, Any]:
    """A row's fields; of a call that raised, in its turns or now, why it has none."""
    if isinstance(taken, str):
        return {"note": taken}
    try:
        call.prepare()
        peak = peak_bytes(call.run, device) / 2**20
    except Exception as error:
        return {"note": first_line(error)}
    finally:
        give_back_memory(device)
    times = {"ms_20": taken.low, "ms_median": taken.median, "ms_80": taken.high}
    note = HOST_BOUND if taken.host_bound else ""
    return {**times, "ceiling_ms": ceiling_ms, "peak_mib": peak, "note": note}


def fits_one_launch(logits: Tensor) -> bool:
    if logits.device.type != "cuda":
        return False  # the eager implementation has no launches
    from humanline_fused.autograd import num_programs

    return num_programs(logits) > 0


def _nothing() -> None:
    pass


def _row(provider: Provider, case: Case, mode: Mode, batch: Batch) -> Row:
    B, T, V = batch.logits.shape
    return Row(
        case=case.name,
        mode=mode,
        provider=provider.name,
        B=B,
        T=T,
        V=V,
        dtype=str(batch.logits.dtype).removeprefix("torch."),
        rows=int(batch.loss_mask.sum()),
        floor_bytes=case.floor_bytes(mode, batch),
    )


def _times(
    case: Case, mode: Mode, inputs: Batch, calls: dict[Provider, Call], repeats: int
) -> tuple[dict[Provider, Times | str], float | None]:
    """Of each provider, and the ceiling's milliseconds, measured in the same turns; no ceiling without a GPU."""
    device = inputs.logits.device
    ceiling_calls: list[Call] = []
    if device.type == "cuda" and calls:
        from benchmarks.ceilings import ceilings

        with contextlib.suppress(torch.OutOfMemoryError):
            ceiling_calls = [Call(launches) for launches in ceilings(case, mode, inputs)]
    times = interleaved_times([*calls.values(), *ceiling_calls], repeats, device)
    ceiling_ms = min((taken.median for taken in times[len(calls) :] if isinstance(taken, Times)), default=None)
    return dict(zip(calls, times, strict=False)), ceiling_ms
