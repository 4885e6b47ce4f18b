"""Rows that were measured, and the file that keeps them beside the machine's facts."""

import csv
import hashlib
import importlib.util
import io
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
MEASURED_CODE = ("kernels", "humanline_fused", "benchmarks")


@dataclass(frozen=True)
class Row:
    """One provider's figures for one case and mode. Times and bytes are empty where the note says why.

    Attributes:
        rows: how many of the B·T rows count.
        H: of the hidden states; empty on logits.
        floor_bytes: what a case on logits has to read and write at least.
        floor_flops: what a case on hidden states has to multiply and add at least.
        ceiling_ms: of the loads and stores alone (empty without a GPU), or of the products alone, measured in the same
            turns.
        peak_mib: the most that was held at once beyond the inputs, gradients included.
        value_error, gradient_error: relative, against float64; of ``logp`` or the loss, and of the gradients.
        note: why there are no figures, or what they have to be read with.
    """

    case: str
    mode: str
    provider: str
    B: int
    T: int
    V: int
    dtype: str
    rows: int
    H: int | None = None
    floor_bytes: int | None = None
    floor_flops: int | None = None
    ms_20: float | None = None
    ms_median: float | None = None
    ms_80: float | None = None
    ceiling_ms: float | None = None
    peak_mib: float | None = None
    value_error: float | None = None
    gradient_error: float | None = None
    note: str = ""

    @property
    def gb_per_s(self) -> float | None:
        """The floor's bytes over the median: more passes than the floor's show as fewer GB/s."""
        return None if self.ms_median is None or not self.floor_bytes else self.floor_bytes / self.ms_median / 1e6

    @property
    def tflop_per_s(self) -> float | None:
        """The floor's flops over the median: products beyond the floor's show as fewer TFLOP/s."""
        return None if self.ms_median is None or not self.floor_flops else self.floor_flops / self.ms_median / 1e9

    @property
    def ceiling_share(self) -> float | None:
        return None if self.ms_median is None or self.ceiling_ms is None else self.ceiling_ms / self.ms_median

    @property
    def itemsize(self) -> int:
        return getattr(torch, self.dtype).itemsize

    @property
    def logits_mib(self) -> float:
        """One [B, T, V] in the logits' dtype."""
        return self.B * self.T * self.V * self.itemsize / 2**20

    def cells(self) -> tuple[str, ...]:
        def cell(value: float | None, form: str) -> str:
            return "" if value is None else format(value, form)

        digits = ".0f" if self.ms_median is None or self.ms_median >= 10 else ".2f"
        times = f"{cell(self.ms_median, digits)} ({cell(self.ms_20, digits)}-{cell(self.ms_80, digits)})"
        times = "" if self.ms_median is None else times
        return (
            self.case,
            self.mode,
            self.provider,
            ", ".join(filter(None, (times, self.note))),
            cell(self.gb_per_s, ".0f" if (self.gb_per_s or 0) >= 10 else ".1f"),
            cell(self.tflop_per_s, ".0f" if (self.tflop_per_s or 0) >= 10 else ".2f"),
            cell(self.ceiling_share, ".0%"),
            cell(self.peak_mib, ".0f"),
            cell(self.value_error, ".0e"),
            cell(self.gradient_error, ".0e"),
        )


HEADER = (
    "case",
    "mode",
    "provider",
    "ms, median (20-80 %)",
    "GB/s",
    "TFLOP/s",
    "of ceiling",
    "peak MiB",
    "value error",
    "gradient error",
)


def filled(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The header and the rows' cells, without the columns that are empty in all of them."""
    table = [HEADER, *(row.cells() for row in rows)]
    kept = [i for i in range(len(HEADER)) if any(line[i] for line in table[1:])]
    return [tuple(line[i] for i in kept) for line in table]


def environment(device: torch.device, commit: str | None = None) -> dict[str, str]:
    """What the figures depend on.

    Args:
        commit: of a tree that is a copy without its history.
    """
    facts = {
        "machine": machine(device),
        "torch": torch.__version__,
        "triton": importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else "none",
        "python": platform.python_version(),
        "commit": commit or _commit(),
        "source": source_hash(),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
    }
    if device.type == "cuda":
        facts["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return facts


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if os.name == "posix" else None
    name = cpu[1] if cpu else platform.processor()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def machine_with_cache(device: torch.device) -> str:
    """The card, and its L2, which decides what fits one launch."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size / 2**20
    return f"{machine(device)}, {cache:.0f} MiB of L2"


def source_hash(root: Path = ROOT) -> str:
    """Of all code that the figures depend on, committed or not."""
    digest = hashlib.sha256()
    for file in sorted(file for folder in MEASURED_CODE for file in (root / folder).rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _commit() -> str:
    """Figures that are being written do not make the tree another one."""
    head = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results"]
    return head if _output("git", "-C", str(ROOT), *changed) == "unknown" else f"{head}-dirty"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def write_csv(path: Path, facts: dict[str, str], rows: Sequence[Row] = ()) -> None:
    """Facts as ``# name: value`` lines, then the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = io.StringIO()
    lines.writelines(f"# {name}: {value}\n" for name, value in facts.items())
    csv.DictWriter(lines, COLUMNS).writeheader()
    path.write_text(lines.getvalue(), newline="")
    append_rows(path, rows)


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add the rows of one comparison to a file, all at once: an interrupted command leaves no half of one."""
    lines = io.StringIO()
    csv.DictWriter(lines, COLUMNS).writerows(asdict(row) for row in rows)
    with path.open("a", newline="") as file:
        file.write(lines.getvalue())


def drop_rows(path: Path, case: str, mode: str) -> None:
    """Take one comparison out of a file."""
    facts, rows = read_csv(path)
    kept = [row for row in rows if (row.case, row.mode) != (case, mode)]
    if len(kept) < len(rows):
        write_csv(path, facts, kept)


COLUMNS = [field.name for field in fields(Row)]
TEXTS, COUNTS = (
    {"case", "mode", "provider", "dtype", "note"},
    {"B", "T", "V", "rows", "H", "floor_bytes", "floor_flops"},
)


def read_csv(path: Path) -> tuple[dict[str, str], list[Row]]:
    lines = path.read_text().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))

    def value(name: str, text: str) -> str | float | None:
        if name in TEXTS:
            return text
        return (int(text) if name in COUNTS else float(text)) if text else None

    rows = csv.DictReader(line for line in lines if not line.startswith("# "))
    return facts, [Row(**{name: value(name, text) for name, text in row.items()}) for row in rows]  # type: ignore[arg-type]
