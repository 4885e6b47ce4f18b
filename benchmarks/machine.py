"""The machine, the versions and the code that figures depend on; and child processes."""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.results import ROOT, Facts

MEASURED_CODE = ("kernels", "humanline_fused", "benchmarks")


def environment(device: torch.device, commit: str | None = None) -> Facts:
    """The head of a file of results.

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
    cpuinfo = Path("/proc/cpuinfo")
    name = processor(cpuinfo.read_text()) if cpuinfo.is_file() else None
    return f"{name or platform.processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def processor(cpuinfo: str) -> str | None:
    """The name of the first processor, and its generation: a virtual machine may call all of a make by one name.

    Args:
        cpuinfo: text of Linux's ``/proc/cpuinfo``, which has a name on some processors only.

    >>> processor("cpu family\\t: 26\\nmodel\\t\\t: 2\\nmodel name\\t: AMD EPYC\\n")
    'AMD EPYC (family 26, model 2)'
    """
    found = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+?)\s*$", cpuinfo.split("\n\n")[0], re.MULTILINE))
    name, *generation = (found.get(key) for key in ("model name", "cpu family", "model"))
    return f"{name} (family {generation[0]}, model {generation[1]})" if name and all(generation) else name


def source_hash(root: Path = ROOT, folders: Sequence[str] = MEASURED_CODE) -> str:
    """Of all code that the figures depend on, committed or not."""
    digest = hashlib.sha256()
    for file in sorted(file for folder in folders for file in (root / folder).rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def run_module(
    module: str, *arguments: str, changes: dict[str, str | None], **options: object
) -> subprocess.CompletedProcess:
    """``python -m module`` in a process of its own, with this one's import path.

    Args:
        changes: environment variables to set, or to unset where the value is None.
        options: of :func:`subprocess.run`.
    """
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **changes}
    kept = {name: value for name, value in variables.items() if value is not None}
    return subprocess.run([sys.executable, "-m", module, *arguments], env=kept, check=False, **options)  # type: ignore[call-overload]


def _commit() -> str:
    """Results that are being written do not make it another tree."""
    head = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results"]
    return head if _output("git", "-C", str(ROOT), *changed) == "unknown" else f"{head}-dirty"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"
