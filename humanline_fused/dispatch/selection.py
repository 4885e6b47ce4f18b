"""Chooses the layer that computes: ``eager`` or ``autograd``."""

import torch
from torch import Tensor

from humanline_fused import eager
from humanline_fused.impl import choose_impl
from humanline_fused.layer import Layer
from humanline_fused.scores import LMHead, Logits, Scores, TokenLogp
from humanline_fused.types import Impl


def _deciding(*sources: Scores | None) -> list[Tensor]:
    """The tensors whose dtype and device decide: logits and hidden states, or log-probs if there are no others."""
    models = [s.logits if isinstance(s, Logits) else s.hidden for s in sources if isinstance(s, Logits | LMHead)]
    return models or [s.logp for s in sources if isinstance(s, TokenLogp)]


def accumulation_dtype(*sources: Scores | None) -> torch.dtype:
    """The dtype of log-probs and losses."""
    double = any(tensor.dtype == torch.float64 for tensor in _deciding(*sources))
    return torch.float64 if double else torch.float32


def layer_for(impl: Impl, *sources: Scores | None) -> Layer:
    """The layer that computes for these sources.

    Raises:
        ValueError, RuntimeError: as :func:`humanline_fused.choose_impl`.
    """
    first = _deciding(*sources)[0]
    dtype = torch.float64 if accumulation_dtype(*sources) == torch.float64 else first.dtype
    if choose_impl(impl, first.device, dtype).impl == "eager":
        return eager
    # Imported here: the package must import where triton is not installed.
    from humanline_fused import autograd

    return autograd
