"""Whether the trainers that are timed compute the same thing, as far as they mean to."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.training.runs import Run
from benchmarks.training.variants import VARIANTS, Variant

WRONG = "another answer"
EPSILONS = {"float32": 100, "bfloat16": 4}
"""How far two answers may be apart, relatively, in units in the last place.

float32: a log-prob is off by a product of H terms, about sqrt(H) units of a logit, some 30 at H = 1000 on either side;
the sum over a completion does not make that relatively larger. bfloat16: products are added up in float32, but a logit
is rounded by some and not by others, half a unit, and so are the gradients that arrive at it.
"""


def checked(runs: Sequence[Run], bitwise: bool) -> list[Run]:
    """The runs, those with another answer than humanline's without their figures.

    Args:
        bitwise: whether variants that promise the same bits are held to it.
    """
    of_name = {variant.name: variant for variant in VARIANTS}
    whole = [run for run in runs if not run.note]
    exact = next((run for run in whole if of_name[run.variant].same_bits), None)
    if exact is None:
        return list(runs)

    def judged(run: Run) -> Run:
        found = "" if run.note else difference(run, exact, of_name[run.variant], bitwise)
        if not found:
            return run
        return replace(run, seconds=[], cpu_seconds=[], tokens=[], peak_mib=0.0, note=f"{WRONG}: {found}")

    return [judged(run) for run in runs]


def difference(run: Run, other: Run, variant: Variant, bitwise: bool) -> str:
    """Where the two runs part, in words; nothing where they agree.

    The gradients of the first steps that are alike by definition make the log-probs of one more step alike.
    """
    steps = variant.same_gradients
    tolerance = EPSILONS[run.dtype] * torch.finfo(getattr(torch, run.dtype)).eps
    exactly = bitwise and variant.same_bits
    for name in ("loss", "grad_norm", "logps_chosen", "logps_rejected"):
        mine, theirs = getattr(run, name), getattr(other, name)
        if not mine or len(mine) != len(theirs):
            return f"{name} of {len(mine)} steps instead of {len(theirs)}"
        last = None if steps is None else steps + name.startswith("logps")
        for step, (a, b) in enumerate(zip(mine[:last], theirs[:last], strict=True)):
            same = a == b if exactly else math.isclose(a, b, rel_tol=tolerance)
            if not same:
                return f"{name} {a:.9g} instead of {b:.9g} in step {step}"
    return ""
