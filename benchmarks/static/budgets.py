"""The most that a loop over the vocabulary may cost so that memory stays the limit.

An H200 at 4.3 TB/s has 13 issue slots and 1.7 exp operations per bfloat16 element that it reads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.static.loop_cost import LoopCost

OVER_THE_VOCABULARY = (
    "token_logp_forward",
    "token_logp_backward",
    "grpo_one_launch",
    "score_and_dlogits",
    "scale_dlogits",
)
BYTES_IN_FLIGHT = 40 * 1024  # per SM: needed to hide the latency of memory at full bandwidth
# With a softcap a tanh per element takes the issue slots: an H200 reads at 60 % of its bandwidth, for which 16 KB do.
BYTES_IN_FLIGHT_SOFTCAP = 20 * 1024
# One program on an SM, with the warps of the launch that scores alone: 95 % of a B200's bandwidth, all of an H200's.
BYTES_IN_FLIGHT_ONE_PROGRAM = 36 * 1024
# The cache answers in less than half of the time.
BYTES_IN_FLIGHT_CACHED = 20 * 1024
CACHED = {("grpo_one_launch", "store_dlogits"), ("score_and_dlogits", "store_dlogits")}


@dataclass(frozen=True)
class Budget:
    """Instructions per element that some loops of a kernel may take."""

    kernel: str
    loops: tuple[str, ...]
    nvidia: float
    gfx942: float | None = None

    def on(self, arch: str) -> float | None:
        return self.gfx942 if arch == "gfx942" else self.nvidia


FORWARD = ("sum_weights 1",)
FALL_BACK = ("maximum_of_row", "sum_weights 2")
POLICY = ("sum_weights 1", "sum_weights 3")  # read again and not
REFERENCE_AND_POLICY = (*POLICY, "sum_weights 5")


def _budgets(
    kernel: str, loops: tuple[str, ...], nvidia: dict[str, float], gfx942: float | None = None
) -> Iterator[Budget]:
    """Of one kernel, by specialisation."""
    return (Budget(f"{kernel} {form}", loops, bound, gfx942) for form, bound in nvidia.items())


EVERY_DTYPE = ("bf16", "fp16", "fp32")
BACKWARD = (*EVERY_DTYPE, "bf16 HAS_TEMPERATURE", "bf16 HAS_GRAD_OUTPUT")
COSTLY_BACKWARD = {"bf16 HAS_ENTROPY": 9.6, "bf16 HAS_SOFTCAP": 27.5}
ONE_LAUNCH = {"bf16 HAS_REFERENCE": 5.6, "bf16 HAS_REFERENCE V=32000": 5.6, "fp32 HAS_REFERENCE": 4.2}
SCORE_AND_DLOGITS = {"bf16": 5.6, "bf16 V=32000": 5.6, "fp32": 4.2}
SUMS = {"bf16": 5.6, "fp16": 5.6, "fp32": 4.2, "bf16 HAS_TEMPERATURE": 5.6}

BUDGETS = (
    *_budgets("token_logp_forward", FORWARD, SUMS, gfx942=4),
    *_budgets("token_logp_forward", FORWARD, {"bf16 HAS_ENTROPY": 7.5, "bf16 HAS_SOFTCAP": 22}),
    *_budgets("token_logp_forward", FALL_BACK, dict.fromkeys(EVERY_DTYPE, 7.6)),
    *_budgets("token_logp_backward", ("store_dlogits",), dict.fromkeys(BACKWARD, 7.6), gfx942=11),
    *_budgets("token_logp_backward", ("store_dlogits",), COSTLY_BACKWARD),
    *_budgets("token_logp_backward", ("store_zeros",), dict.fromkeys((*BACKWARD, *COSTLY_BACKWARD), 0.75)),
    *_budgets("grpo_one_launch", REFERENCE_AND_POLICY, ONE_LAUNCH),
    *_budgets("grpo_one_launch", POLICY, {"bf16": 5.6}),
    *_budgets("grpo_one_launch", ("store_dlogits",), dict.fromkeys(("bf16", *ONE_LAUNCH), 7.6)),
    *_budgets("grpo_one_launch", ("store_zeros",), dict.fromkeys(("bf16", *ONE_LAUNCH), 0.75)),
    *_budgets("scale_dlogits", ("scale_dlogits_kernel",), {"bf16": 4.3}),
    *_budgets("score_and_dlogits", FORWARD, SCORE_AND_DLOGITS),
    *_budgets("score_and_dlogits", ("store_dlogits",), dict.fromkeys(SCORE_AND_DLOGITS, 7.6)),
)


def over_the_vocabulary(rows: Sequence[LoopCost], arch: str) -> list[LoopCost]:
    return [row for row in rows if row.arch == arch and row.kernel.startswith(OVER_THE_VOCABULARY)]


def is_fall_back(row: LoopCost) -> bool:
    """Of the few rows whose sum overflows: the second sum of a row, and the maximum before it."""
    return row.loop.startswith("maximum_of_row") or row.loop in ("sum_weights 2", "sum_weights 4", "sum_weights 6")


def narrow(row: LoopCost) -> bool:
    return any(bits < 128 for bits in (*row.load_bits, *row.store_bits))


def waits(row: LoopCost) -> bool:
    return row.shuffles + row.barriers > 0


def starves(row: LoopCost) -> bool:
    return bool(row.load_bits) and row.bytes_in_flight < bytes_needed(row)


def bytes_needed(row: LoopCost) -> int:
    if (row.kernel.split()[0], row.loop) in CACHED:
        return BYTES_IN_FLIGHT_CACHED
    if row.kernel == "score_and_dlogits bf16":
        return BYTES_IN_FLIGHT_ONE_PROGRAM
    return BYTES_IN_FLIGHT_SOFTCAP if "HAS_SOFTCAP" in row.kernel else BYTES_IN_FLIGHT


def cost(row: LoopCost) -> float:
    return float("inf") if row.instructions_per_element is None else row.instructions_per_element


def allowed(row: LoopCost) -> float | None:
    """Instructions per element that the row's loop may take."""
    bounds = [budget.on(row.arch) for budget in BUDGETS if row.kernel == budget.kernel and row.loop in budget.loops]
    return min((bound for bound in bounds if bound is not None), default=None)


def broken(rows: Sequence[LoopCost]) -> list[str]:
    """A line for each loop over its budget, and for each budget of these architectures without a loop."""
    over = [f"{row.kernel} on {row.arch}, {row.loop}: {excess}" for row in rows for excess in _broken_by(row)]
    there = {(row.kernel, row.arch, row.loop) for row in rows}
    idle = [
        f"{budget.kernel} on {arch}, {loop}: no such loop"
        for arch in dict.fromkeys(row.arch for row in rows)
        for budget in BUDGETS
        for loop in budget.loops
        if budget.on(arch) is not None and (budget.kernel, arch, loop) not in there
    ]
    return over + idle


def _broken_by(row: LoopCost) -> Iterator[str]:
    budget = allowed(row)
    if budget is not None and cost(row) > budget:
        yield f"{row.instructions_per_element} instructions per element, budget {budget}"
    if row.spills:
        yield f"{row.spills} bytes spilt"
    if not over_the_vocabulary([row], row.arch):
        return
    if narrow(row):
        yield f"access of {min(*row.load_bits, *row.store_bits, 128)} bits, budget 128"
    if waits(row):
        yield f"{row.shuffles} shuffles and {row.barriers} barriers, budget 0"
    if row.arch.startswith("sm_") and not is_fall_back(row) and starves(row):
        yield f"{row.bytes_in_flight} bytes in flight, budget {bytes_needed(row)}"
