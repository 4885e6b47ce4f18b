"""Whether the trainers that are timed compute the same thing, as far as they mean to."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.training.runs import Run
from benchmarks.training.variants import COPY, LOOKAHEAD, PADDED, VARIANTS

WRONG = "another answer"
OF_NAME = {variant.name: variant for variant in VARIANTS}
EPSILONS = {"float32": 100, "bfloat16": 4}
"""How far two answers may be apart, relatively, in units in the last place.

float32: a log-prob is off by a product of H terms, about sqrt(H) units of a logit, some 30 at H = 1000 on either side;
the sum over a completion does not make that relatively larger. bfloat16: products are added up in float32, but a logit
is rounded by some and not by others, half a unit, and so are the gradients that arrive at it.
"""


BASES = (PADDED, COPY, LOOKAHEAD)
"""The variants that others are compared with: the first of them that ran."""


def checked(runs: Sequence[Run], bitwise: bool) -> list[Run]:
    """The runs, those with another answer than humanline's in the same setting without their figures.

    Args:
        bitwise: whether variants that promise the same bits are held to it.
    """
    exact: dict[str, Run] = {}
    for base in BASES:
        for run in runs:
            if run.variant == base and not run.note:
                exact.setdefault(run.setting, run)

    def judged(run: Run) -> Run:
        if run.note or run.setting not in exact:
            return run
        found = difference(run, exact[run.setting], bitwise)
        if not found:
            return run
        figures = {"seconds": [], "cpu_seconds": [], "tokens": [], "scored": [], "trained": [], "peak_mib": 0.0}
        return replace(run, **figures, note=f"{WRONG}: {found}")

    return [judged(run) for run in runs]


def difference(run: Run, other: Run, bitwise: bool) -> str:
    """Where the two runs part, in words; nothing where they agree.

    The gradients of the first steps that are alike by definition make the log-probs of one more step alike.
    """
    variant = OF_NAME[run.variant]
    steps = variant.same_gradients
    tolerance = EPSILONS[run.dtype] * torch.finfo(getattr(torch, run.dtype)).eps
    exactly = bitwise and variant.same_bits and OF_NAME[other.variant].same_bits
    for name in ("loss", "grad_norm", "logps_chosen", "logps_rejected"):
        mine, theirs = getattr(run, name), getattr(other, name)
        if len(mine) != len(theirs) or not run.loss:
            return f"{name} of {len(mine)} steps instead of {len(theirs)}"
        last = None if steps is None else steps + name.startswith("logps")
        for step, (a, b) in enumerate(zip(mine[:last], theirs[:last], strict=True)):
            size = float(name == "loss")  # a mean of terms of about 1, which may cancel
            same = a == b if exactly else math.isclose(a, b, rel_tol=tolerance, abs_tol=size * tolerance)
            if not same:
                return f"{name} {a:.9g} instead of {b:.9g} in step {step}"
    return ""
