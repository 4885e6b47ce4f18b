"""Chooses the implementation and explains the choice."""

import importlib.util
import os
from typing import NamedTuple

import torch

from humanline_fused.types import Impl

# Looked up here: torch.compile cannot trace the search inside a loss (torch 2.11).
TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None


class Choice(NamedTuple):
    """The implementation, ``"triton"`` or ``"eager"``, and the reason."""

    impl: str
    why: str


def choose_impl(impl: Impl, device: torch.device, dtype: torch.dtype) -> Choice:
    """Resolve ``impl`` for tensors of ``dtype`` on ``device``.

    Raises:
        ValueError: ``impl`` is none of ``"auto"``, ``"triton"``, ``"eager"``.
        RuntimeError: ``impl="triton"`` where Triton cannot run.

    >>> choose_impl("auto", torch.device("cpu"), torch.float32).impl
    'eager'
    """
    if not isinstance(impl, str) or impl not in ("auto", "triton", "eager"):
        raise ValueError(f"impl: expected 'auto', 'triton' or 'eager', got {impl!r:.80}")
    if impl == "eager":
        return Choice("eager", "asked for by name")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if dtype == torch.float64:
        obstacle = "the kernels accumulate in float32, and the tensors are float64"
    elif not TRITON_IS_INSTALLED:
        obstacle = "triton is not installed"
    elif device.type != "cuda" and not interpreted:
        obstacle = f"Triton needs a GPU, and the tensors are on {device} (TRITON_INTERPRET=1 runs its interpreter)"
    else:
        obstacle = None
    if impl == "triton":
        if obstacle:
            raise RuntimeError(f"impl='triton' cannot run here: {obstacle}")
        return Choice("triton", "asked for by name")
    if obstacle:
        return Choice("eager", obstacle)
    if interpreted:
        return Choice("eager", "Triton's interpreter is for tests; ask for it by name")
    return Choice("triton", f"{dtype} on {device}")
