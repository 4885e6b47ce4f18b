"""Rows that were measured, the file that keeps them beside the machine's facts, and README's table of them."""

import csv
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
MARKERS = "<!-- benchmarks: {} -->", "<!-- end of benchmarks -->"


@dataclass(frozen=True)
class Row:
    """One provider's figures for one case; times and bytes are empty where the answer was wrong."""

    case: str
    provider: str
    ms_20: float | None
    ms_median: float | None
    ms_80: float | None
    peak_mib: float | None
    loss_error: float
    gradient_error: float

    def cells(self) -> tuple[str, ...]:
        if self.ms_median is None or self.peak_mib is None:
            times = peak = "wrong answer"
        else:
            times, peak = f"{self.ms_median:.0f} ({self.ms_20:.0f}-{self.ms_80:.0f})", f"{self.peak_mib:.0f}"
        return self.case, self.provider, times, peak, f"{self.loss_error:.0e}", f"{self.gradient_error:.0e}"


HEADER = ("case", "provider", "ms, median (20-80 %)", "peak MiB", "loss error", "gradient error")


def environment(device: torch.device, shape: tuple[int, int, int]) -> dict[str, str]:
    """What the figures depend on."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if os.name == "posix" else None
    facts = {
        "machine": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{cpu[1] if cpu else platform.processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "shape": "B={} T={} V={}".format(*shape),
    }
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return facts


def write_csv(path: Path, facts: dict[str, str], rows: list[Row]) -> None:
    """Facts as ``# name: value`` lines, then the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in facts.items())
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_csv(path: Path) -> tuple[dict[str, str], list[Row]]:
    lines = path.read_text().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    rows = csv.DictReader(line for line in lines if not line.startswith("# "))
    texts = {"case", "provider"}
    return facts, [Row(**{k: v if k in texts else float(v) if v else None for k, v in row.items()}) for row in rows]  # type: ignore[arg-type]


def markdown(path: Path) -> str:
    """The file's rows as a table, and where they come from."""
    facts, rows = read_csv(path)
    table = [HEADER, ("---",) * len(HEADER), *(row.cells() for row in rows)]
    source = f"`{path.relative_to(ROOT)}`: {facts['machine']}; torch {facts['torch']}; {facts['shape']}."
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in table), "", source])


def fill_in(document: str) -> str:
    """The document with every marked table made anew from the file that its marker names."""
    begin, end = (re.escape(marker).replace(r"\{\}", r"(\S+)") for marker in MARKERS)

    def table(match: re.Match[str]) -> str:
        return f"{MARKERS[0].format(match[1])}\n{markdown(ROOT / match[1])}\n{MARKERS[1]}"

    return re.sub(f"{begin}.*?{end}", table, document, flags=re.DOTALL)
