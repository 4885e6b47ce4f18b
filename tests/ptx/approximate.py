"""Functions that the PTX manual calls approximate: rounded to nearest, or in error by as much as it permits."""

from typing import Any

import numpy as np

from tests.error_budget import EX2, LG2, RSQRT
from tests.ptx.arithmetic import F4, F8, U8, flush

RCP, SQRT, TANH, DIV = 2.0**-23, 2.0**-22, 2.0**-11, 2.0**-22
"""Relative errors, "Floating Point Instructions" of the PTX ISA. ``div.full`` is in error by 2 ulp."""


class Nearest:
    """Computed in float64 and rounded once."""

    def moved(self, x: Any, bound: float) -> Any:
        return x

    def ex2(self, x: Any) -> Any:
        return self.moved(np.exp2(np.asarray(x, F8)), EX2).astype(F4)

    def lg2(self, x: Any) -> Any:
        return self.moved(np.log2(np.asarray(x, F8)), LG2).astype(F4)

    def rsqrt(self, x: Any) -> Any:
        return self.moved(1.0 / np.sqrt(np.asarray(x, F8)), RSQRT).astype(F4)

    def rcp(self, x: Any) -> Any:
        return self.moved(1.0 / np.asarray(x, F8), RCP).astype(F4)

    def sqrt(self, x: Any) -> Any:
        return self.moved(np.sqrt(np.asarray(x, F8)), SQRT).astype(F4)

    def tanh(self, x: Any) -> Any:
        return self.moved(np.tanh(np.asarray(x, F8)), TANH).astype(F4)

    def divided(self, x: Any, y: Any) -> Any:
        return self.moved(np.asarray(x, F8) / np.asarray(y, F8), DIV).astype(F4)

    def flushed(self, function: str, x: Any) -> Any:
        """The form with ``.ftz``."""
        return flush(getattr(self, function)(flush(x)))


class Adverse(Nearest):
    """Each result moved by the bound, up or down by a hash of its bits: the same input gives the same output.

    1 stays 1: ex2(±0) is exact by the manual's tables.
    """

    def __init__(self, seed: int):
        self.seed = U8(seed * 2 + 1)

    def moved(self, x: Any, bound: float) -> Any:
        x = np.asarray(x, F8)
        mixed = (x.view(U8) ^ (x.view(U8) >> U8(29))) * U8(0x9E3779B97F4A7C15) * self.seed
        return np.where(x == 1, x, x * (1 + np.where(mixed >> U8(63), bound, -bound)))
