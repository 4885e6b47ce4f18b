"""One comparison: answers first, then times in turns, then memory."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.batches import AnyBatch
from benchmarks.kernels.cases import Case, Mode
from benchmarks.kernels.ceilings import Least, ceilings
from benchmarks.kernels.figures import Row
from benchmarks.kernels.oracle import Oracle
from benchmarks.kernels.providers import OURS, Provider
from benchmarks.measure import MIB, Call, Times, first_line, give_back_memory, interleaved_times, peak_bytes

LARGEST_LOGP = 32.0  # nats; of the log-probs of benchmarks.batches
VALUE_LIMIT = 1e-5
"""Relative error that a right value may have: a log-ratio is ten times smaller than its log-probs, which are rounded to
1e-6."""

ROUNDINGS = 3
"""In the dtype of the hidden states on the way to a gradient: of dlogits, of the side that is scaled, of the sum."""

APPROXIMATE_LIMIT = 0.5  # relative error beyond which an approximation is one of something else
WRONG, CHECKED, HOST_BOUND = "wrong answer", "checked, not timed", "host-bound"
APPROXIMATE = "approximate answer"
TWO_LAUNCHES = "two launches here"
FINAL = {"", WRONG, CHECKED, HOST_BOUND, APPROXIMATE, f"{APPROXIMATE}, {HOST_BOUND}", TWO_LAUNCHES}
"""Notes of rows that are as they should be, or that are wrong."""


def value_limit(case: Case, batch: AnyBatch) -> float:
    """Relative error that a right value may have."""
    return VALUE_LIMIT + _of_long_sums(case, batch)


def gradient_limit(case: Case, batch: AnyBatch) -> float:
    """Relative error that a right gradient may have, in each of the parts that the oracle compares.

    An entry is rounded to half a unit in its last place, which beside the smallest number of that exponent is eps / 2
    (all targets of a batch may be such); behind a product it was so up to :data:`ROUNDINGS` times. A softmax has the
    absolute error of its exponent, which is a logit less lse: in float32 each of the two is rounded to at most eps / 2
    of the largest log-prob.
    """
    roundings = ROUNDINGS if case.on_hidden_states else 1
    of_entries = roundings * torch.finfo(batch.policy[0].dtype).eps / 2 + LARGEST_LOGP * torch.finfo(torch.float32).eps
    return of_entries + _of_long_sums(case, batch)


def _of_long_sums(case: Case, batch: AnyBatch) -> float:
    """The error that float32 leaves in a log-prob whose exponentials are added up one by one, of either sign (√V), and
    in β times a sequence's sum of those, the argument of a sigmoid (β √T).

    The longer sequences of hidden states show it, and logits made of signs: few numbers, which are rounded alike.
    """
    if not case.on_hidden_states:
        return 0.0
    of_token = (LARGEST_LOGP + math.sqrt(batch.shape["V"])) * torch.finfo(torch.float32).eps
    if case.objective is None or not case.objective.sums:
        return of_token
    return of_token * (1 + case.objective.settings["beta"] * math.sqrt(batch.shape["T"]))


def compare(case: Case, mode: Mode, batch: AnyBatch, providers: Sequence[Provider], repeats: int) -> list[Row]:
    """One row for each provider of the case. A provider whose answer is wrong, or missing, gets no time.

    Where one launch is asked for and two are made, nobody is timed: it would be another case under this one's name.
    """
    batch, device = case.inputs(batch), batch.loss_mask.device
    providers = [provider for provider in providers if case.name in provider.cases]
    skipped: list[Row] = []
    if case.one_launch and not fits_one_launch(batch.policy[0]):
        skipped = [replace(_row(p, case, mode, batch), note=TWO_LAUNCHES) for p in providers if p.name == OURS]
        providers = [provider for provider in providers if not provider.timed]
    rows = _checked(case, mode, batch, providers)
    inputs, restore = case.writable(batch)
    timed = [provider for provider, row in rows.items() if row.note in ("", APPROXIMATE)]
    calls = [Call(partial(provider.answer, case, mode, inputs), prepare=restore) for provider in timed]
    bare: list[Least] = []
    with contextlib.suppress(torch.OutOfMemoryError):
        bare = ceilings(case, mode, inputs) if calls else []
    times = interleaved_times([*calls, *(Call(way) for part in bare for way in part.ways)], repeats, device)
    ceiling_ms = least_ms(bare, times[len(calls) :])
    del bare  # the memory that the ceiling holds is none of a provider's
    for provider, call, taken in zip(timed, calls, times, strict=False):
        figures = _figures(call, taken, ceiling_ms, device)
        figures["note"] = ", ".join(filter(None, (rows[provider].note, figures["note"])))
        rows[provider] = replace(rows[provider], **figures)
    return [*skipped, *rows.values()]


def least_ms(parts: Sequence[Least], times: Sequence[Times | str]) -> float | None:
    """Of every part its fastest way; None if no way of one could run, or there is no part."""
    taken = iter(times)
    fastest = [
        min((time.median for time in islice(taken, len(part.ways)) if isinstance(time, Times)), default=math.inf)
        for part in parts
    ]
    total = sum(part.times * ms for part, ms in zip(parts, fastest, strict=True))
    return total if 0 < total < math.inf else None


def final(note: str) -> bool:
    """Whether another try would not change the note; all others are errors."""
    return note in FINAL or note.startswith("NotImplementedError")


def fits_one_launch(logits: Tensor) -> bool:
    if logits.device.type != "cuda":
        return False  # the eager implementation has no launches
    from humanline_fused.autograd import num_programs

    return num_programs(logits) > 0


def _row(provider: Provider, case: Case, mode: Mode, batch: AnyBatch) -> Row:
    dtype = str(batch.policy[0].dtype).removeprefix("torch.")
    sizes: dict[str, Any] = {**batch.shape, **case.floor(mode, batch)}
    return Row(case.name, mode, provider.name, dtype=dtype, rows=batch.counted, **sizes)


def _checked(case: Case, mode: Mode, batch: AnyBatch, providers: Sequence[Provider]) -> dict[Provider, Row]:
    """Each provider's errors, and a note unless it is to be timed, or is timed with one."""
    exact = batch.exact()
    truth = Oracle(case, mode, exact)
    inputs, restore = case.writable(exact)
    values, gradients = value_limit(case, exact), gradient_limit(case, exact)
    rows: dict[Provider, Row] = {}
    for provider in providers:
        row = _row(provider, case, mode, batch)
        try:
            restore()
            value, gradient = truth.errors(provider.answer(case, mode, inputs))
        except Exception as error:  # a peer that runs out of memory, or that does not compile here
            rows[provider] = replace(row, note=first_line(error))
            continue
        finally:
            give_back_memory(exact.loss_mask.device)
        note = "" if provider.timed else CHECKED
        if not (value <= values and (gradient or 0) <= gradients):
            near = value <= APPROXIMATE_LIMIT and (gradient or 0) <= APPROXIMATE_LIMIT
            note = APPROXIMATE if provider.approximate and near else WRONG
        rows[provider] = replace(row, value_error=value, gradient_error=gradient, note=note)
    return rows


def _figures(call: Call, taken: Times | str, ceiling_ms: float | None, device: torch.device) -> dict[str, Any]:
    """A row's fields; of a call that raised, in its turns or now, its error alone."""
    if isinstance(taken, str):
        return {"note": taken}
    try:
        call.prepare()
        peak = peak_bytes(call.run, device) / MIB
    except Exception as error:
        return {"note": first_line(error)}
    finally:
        give_back_memory(device)
    times = {"ms_20": taken.low, "ms_median": taken.median, "ms_80": taken.high}
    return {**times, "ceiling_ms": ceiling_ms, "peak_mib": peak, "note": HOST_BOUND if taken.host_bound else ""}
