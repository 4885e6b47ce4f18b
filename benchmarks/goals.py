"""A goal and its verdict. The goals themselves: ``kernels/kernel_goals.py`` and ``training/runs_table.py``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.tables import Line

Figures = Mapping[Any, Any]  # rows by their distinguishing fields
Figure = Callable[[Figures], float]
"""The number that is judged, from rows; raises :class:`NotMeasuredError` where one is missing."""

ANY_V = range(2**31)


class NotMeasuredError(LookupError):
    """A figure needs a row, or a number of it, that is not there."""


def number(key: Any, name: str) -> Figure:
    """Of this name, of the row at ``key``."""

    def figure(figures: Figures) -> float:
        value = getattr(figures.get(key), name, None)
        if value is None:
            raise NotMeasuredError(f"{name} of {key}")
        return value

    return figure


def ratio(name: str, above: Any, below: Any) -> Figure:
    """Of the numbers of this name of two rows."""
    return lambda figures: number(above, name)(figures) / number(below, name)(figures)


@dataclass(frozen=True)
class Goal:
    name: str
    figure: Figure
    bound: float  # the least that the figure may be, or the most if at_most
    form: str = ".0%"  # how the two are printed
    at_most: bool = False
    vocabularies: range = ANY_V  # the goal applies to these
    H: int | None = None  # it applies to this hidden size alone
    nothing_masked: bool = False  # it applies only where every row counts that has a target

    def applies_to(self, row: Any) -> bool:
        """Whether it applies to the shape of the row."""
        of_size = row.V in self.vocabularies and self.H in (None, row.H)
        return of_size and not (self.nothing_masked and row.rows < row.B * (row.T - 1))

    def cells(self, figures: Figures) -> Line:
        wanted = f"{'<=' if self.at_most else '>='} {self.bound:{self.form}}"
        try:
            value = self.figure(figures)
        except NotMeasuredError:
            return {"measured": "", "wanted": wanted, "": "not measured"}
        met = value <= self.bound if self.at_most else value >= self.bound
        return {"measured": f"{value:{self.form}}", "wanted": wanted, "": "met" if met else "missed"}
