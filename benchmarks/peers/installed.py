"""Which peers are here, and a folder of wheels for those that are not."""

import importlib.metadata
import importlib.util
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

TRL_VERSION, LIGER_VERSION, CCE_VERSION, QUACK_VERSION = "1.16.0", "0.8.5", "25.1.1", "0.6.5"

Obstacle = Callable[[torch.device], str | None]
"""Why something cannot run on a device, or None."""


def needs(distribution: str, version: str, *modules: str, gpu: str = "", compiler: bool = False) -> Obstacle:
    """The obstacle of a peer; ``gpu`` is why it needs one, where it does."""

    def obstacle(device: torch.device) -> str | None:
        here = installed_obstacle(distribution, version, *modules) or (compile_obstacle(device) if compiler else None)
        elsewhere = gpu if device.type != "cuda" else ""
        return "; ".join(filter(None, (elsewhere, here))) or None

    return obstacle


def installed_obstacle(distribution: str, version: str, *needed: str) -> str | None:
    """Why the distribution is not here in this version, or the modules that it needs are not; None if all are."""
    try:
        installed = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed, and no wheel of it in --wheels"
    if installed != version:
        return f"the benchmarks call {version}, {installed} is installed"
    absent = missing(*needed)
    return f"it needs {', '.join(absent)}" if absent else None


def missing(*modules: str) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def compile_obstacle(device: torch.device) -> str | None:
    if device.type == "cpu" and not any(shutil.which(compiler) for compiler in ("g++", "clang++")):
        return "inductor needs a C++ compiler"
    if device.type == "cuda" and not any(shutil.which(compiler) for compiler in ("gcc", "clang", "cc")):
        return "Triton's launcher needs a C compiler"
    return None


def use_wheels(folder: Path) -> None:
    """Put the folder's pure-Python wheels before everything on the path; unpacked, as Triton reads its kernels' source.

    Raises:
        FileNotFoundError: there is none.
    """
    wheels = sorted(folder.glob("*-none-any.whl"))
    if not wheels:
        raise FileNotFoundError(f"--wheels: no pure-Python wheel in {folder}")
    unpacked = tempfile.mkdtemp(prefix="wheels-")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    sys.path.insert(0, unpacked)
