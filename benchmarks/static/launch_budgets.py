"""The most instructions and passes that a whole launch may take."""

from collections.abc import Iterator, Sequence

from benchmarks.static.launch_cost import LaunchCost

PASSES = {
    "forward": (1, 0),
    "backward": (1, 1),
    "backward in place": (1, 1),
    "one launch": (3, 1),
    "score and dlogits": (2, 1),
    "scale": (1, 1),
}
"""(read, written), by launch. One launch reads the policy twice, from the cache the second time, and the reference; a
head's reads its rows twice, from the cache the second time."""

SM_80 = {
    "forward": {32000: 7.48, 50257: 6.98, 128256: 6.03},
    "backward": {32000: 8.71, 50257: 8.53, 128256: 7.78},
    "backward in place": {32000: 8.71, 50257: 8.53, 128256: 7.78},
    "one launch": {32000: 22.37, 50257: 23.44, 128256: 22.45},
    "score and dlogits": {32000: 15.93, 50257: 16.16, 128256: 14.02},
    "scale": {32000: 4.83, 50257: 4.73, 128256: 4.32},
}
SM_100 = {
    "forward": {32000: 7.64, 50257: 7.18, 128256: 6.27},
    "backward": {32000: 8.74, 50257: 8.55, 128256: 7.79},
    "backward in place": {32000: 8.74, 50257: 8.55, 128256: 7.79},
    "one launch": {32000: 22.46, 50257: 23.50, 128256: 22.54},
    "score and dlogits": {32000: 15.96, 50257: 16.18, 128256: 14.03},
    "scale": {32000: 5.36, 50257: 5.27, 128256: 4.83},
}
INSTRUCTIONS = {80: SM_80, 90: SM_80, 100: SM_100}
"""Counted per element, by architecture, launch and vocabulary, with Triton 3.7.1; on sm_100 the most of 3.6.0, 3.7.1
and 3.9.0.

On sm_100 two float32 may share an instruction, which costs moves where there is little to compute, as in scaling.
Triton 3.6.0 pairs none in a backward, 3.7.1 the most.
"""

MARGIN = 1.05
"""Of a count that another version of Triton may give."""

OTHERS = 0.03  # passes: a few numbers per row, read by every warp
ROUNDED = 1e-4  # passes: a row keeps four digits


def allowed(row: LaunchCost) -> float:
    """Instructions per element that the launch may take; an architecture that was not counted, those of the last."""
    arch = max(known for known in INSTRUCTIONS if known <= int(row.arch.removeprefix("sm_")))
    return round(MARGIN * INSTRUCTIONS[arch][row.launch][row.V], 2)


def broken(rows: Sequence[LaunchCost]) -> list[str]:
    """A line for each budget that a launch exceeds, and for each count that is too small to be one."""
    return [f"{row.launch} on {row.arch}, V={row.V}: {excess}" for row in rows for excess in _broken_by(row)]


def _broken_by(row: LaunchCost) -> Iterator[str]:
    if row.instructions_per_element > allowed(row):
        yield f"{row.instructions_per_element} instructions per element, budget {allowed(row)}"
    # A warp's 512 bytes lie in 16 sectors, or in 17 where the row does not begin with one. Every warp reads the target.
    unaligned = 0 if row.V * 2 % 32 == 0 else 1 / 16
    for what, passes, least in zip(
        ("read", "written"), (row.passes_read, row.passes_written), PASSES[row.launch], strict=True
    ):
        most = least * (1 + unaligned + 32 / (row.V / 8))
        if not least * (1 - 1 / row.V) - ROUNDED <= passes <= most + ROUNDED:
            yield f"{passes} passes {what}, budget {least} to {most:.4f}"
    if row.others > OTHERS:
        yield f"{row.others} passes for everything else, budget {OTHERS}"
