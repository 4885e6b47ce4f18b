"""Converts arguments of the public functions."""

import math

import torch
from torch import Tensor

from humanline_fused import validation
from humanline_fused.types import HumanlineClamp


def bounds_of(clamp: HumanlineClamp | None) -> dict[str, float]:
    validation.check_clamp(clamp)
    clamp = clamp or HumanlineClamp(-math.inf, math.inf)
    return {"log_epsilon_P": float(clamp.log_epsilon_P), "log_epsilon_R": float(clamp.log_epsilon_R)}


def scalar(value: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a tensor []. No copy from the host, so no wait."""
    if isinstance(value, Tensor):
        return value.detach().to(dtype)
    return torch.full((), value, dtype=dtype, device=device)
