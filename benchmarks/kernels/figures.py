"""One provider's figures for one case and mode, and the tables made of such rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.kernels.cases import HEAD_CASES, LOGITS_CASES, Mode
from benchmarks.measure import MIB
from benchmarks.results import read
from benchmarks.tables import Line, filled, percent_range, piped

GIB = 1024 * MIB


@dataclass(frozen=True)
class Row:
    """Times and bytes are empty where the note says why."""

    case: str
    mode: str
    provider: str
    B: int
    T: int
    V: int
    dtype: str
    rows: int  # of the B·T, those that count
    H: int | None = None  # empty on logits
    floor_bytes: int | None = None  # the least that a case on logits reads and writes
    floor_flops: int | None = None  # the least that a case on hidden states multiplies and adds
    ms_20: float | None = None
    ms_median: float | None = None
    ms_80: float | None = None
    ceiling_ms: float | None = None  # of the loads and stores (empty without a GPU) or the products, in the same turns
    peak_mib: float | None = None  # the most that was held at once beyond the inputs, gradients included
    value_error: float | None = None  # relative, against float64: of logp or the loss
    gradient_error: float | None = None  # of the gradients
    note: str = ""  # why there are no figures, or a warning that belongs to them

    def per_ms(self, work: float | None) -> float | None:
        """Work over the median: passes or products beyond the floor's show as fewer GB/s or TFLOP/s."""
        return None if self.ms_median is None or work is None else work / self.ms_median

    @property
    def gb_per_s(self) -> float | None:
        return self.per_ms(self.floor_bytes and self.floor_bytes / 1e6)

    @property
    def tflop_per_s(self) -> float | None:
        return self.per_ms(self.floor_flops and self.floor_flops / 1e9)

    @property
    def ceiling_share(self) -> float | None:
        return self.per_ms(self.ceiling_ms)

    @property
    def over_ceiling(self) -> float | None:
        """Time over the ceiling's."""
        return self.ceiling_share and 1 / self.ceiling_share

    @property
    def beyond_dlogits(self) -> float | None:
        """Peak beyond the inputs, and beyond dlogits where it is apart from them, in tensors of logits."""
        apart = not LOGITS_CASES[self.case].inplace_gradient
        return None if self.peak_mib is None else self.peak_mib / self.logits_mib - apart

    @property
    def workspaces(self) -> float | None:
        """Peak beyond the inputs, their gradients and the float32 accumulator, in ``LMHead``'s default workspaces.

        Weights that are trained on more than one chunk have an accumulator; where one workspace holds the logits of
        every row there is none.
        """
        if self.peak_mib is None or self.H is None:
            return None
        workspace = min(max(2 * GIB, 4096 * self.V * self.itemsize), 4 * GIB)  # on a GPU that has the memory
        trained = self.V * self.H if self.mode == "full" else 0
        gradients = (self.B * self.T * self.H + trained) * self.itemsize
        accumulator = 4 * trained if self.rows * self.V * self.itemsize > workspace else 0
        return (self.peak_mib * MIB - gradients - accumulator) / workspace

    @property
    def itemsize(self) -> int:
        return getattr(torch, self.dtype).itemsize

    @property
    def logits_mib(self) -> float:
        """One [B, T, V] in the logits' dtype."""
        return self.B * self.T * self.V * self.itemsize / MIB

    @property
    def shape(self) -> str:
        hidden = f" H={self.H}" if self.H else ""
        return f"B={self.B} T={self.T}{hidden} V={self.V}, {self.rows} rows count, {self.dtype}"

    def cells(self) -> Line:
        times = ""
        if self.ms_20 is not None and self.ms_median is not None and self.ms_80 is not None:
            times = percent_range((self.ms_20, self.ms_median, self.ms_80), ".0f" if self.ms_median >= 10 else ".2f")
        return {
            "case": self.case,
            "mode": self.mode,
            "provider": self.provider,
            "ms, median (20-80 %)": ", ".join(filter(None, (times, self.note))),
            "GB/s": _cell(self.gb_per_s, ".0f" if (self.gb_per_s or 0) >= 10 else ".1f"),
            "TFLOP/s": _cell(self.tflop_per_s, ".0f" if (self.tflop_per_s or 0) >= 10 else ".2f"),
            "of ceiling": _cell(self.ceiling_share, ".0%"),
            "peak MiB": _cell(self.peak_mib, ".0f"),
            "value error": _cell(self.value_error, ".0e"),
            "gradient error": _cell(self.gradient_error, ".0e"),
        }


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def figures(rows: Sequence[Row]) -> list[Line]:
    return filled([row.cells() for row in rows])


def markdown(path: Path, name: str, words: Sequence[str] = ()) -> str:
    """A file's rows whose case and mode are among the words (all without a word), and where they come from."""
    facts, rows = read(path, Row)
    rows = [row for row in rows if not words or {row.case, row.mode} <= set(words)]
    lines = figures(rows)
    if len({row.mode for row in rows}) == 1:
        lines = [{heading: cell for heading, cell in line.items() if heading != "mode"} for line in lines]
    shapes = "; ".join(sorted({row.shape for row in rows}))
    source = f"`{name}`: {facts['machine']}; torch {facts['torch']}; triton {facts['triton']}; {shapes}."
    return f"{piped(lines)}\n\n{source}"


def floors(kind: str) -> str:
    """The least work of the cases on ``"logits"``, in passes, or on hidden states (``"head"``), in products."""
    if kind == "head":
        headings: dict[Mode, str] = {"nograd": "value", "frozen": "frozen head", "full": "trained head"}
        return piped(
            [
                {"case": f"`{name}`", **{headings[mode]: str(case.products.get(mode, "")) for mode in headings}}
                for name, case in HEAD_CASES.items()
            ]
        )
    lines = []
    for case in LOGITS_CASES.values():
        (reads, writes), value = case.passes["full"], sum(case.passes.get("nograd", ())) or ""
        passes = {"value": str(value), "with its gradient": str(reads + writes)}
        lines.append({"case": f"`{case.name}`", **passes, "of these reads": str(reads), "writes": str(writes)})
    return piped(lines)
