"""The argument that humanline adds to TRL's trainers."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from humanline_fused import HumanlineClamp

Head = Literal["auto", "fused", "trl"]
Layout = Literal["auto", "shared_prompt", "padded"]


@dataclass(frozen=True)
class Humanline(HumanlineClamp):
    """The argument that humanline adds to TRL's trainers: bounds of the clamp, sync interval, and how to compute.

    Args:
        log_epsilon_P, log_epsilon_R: bounds of each token's log-ratio, nats, as in :class:`HumanlineClamp`.
        sync_every: k ≥ 1: copy the policy into the reference before the update of steps 0, k, 2k …; None never syncs.
            The default is the paper's for 8B models; docs/choosing.md begins with None.
        head: ``"fused"`` multiplies only the hidden states of completions with the head; ``"trl"`` is TRL's own forward
            pass, whole; ``"auto"`` is fused where it gives the log-probs of the model's own logits.
        layout: ``"shared_prompt"`` is one row of tokens without padding, in which sequences share their common prefix;
            ``"padded"`` is a row per sequence; ``"auto"`` shares prompts where the model computes the same. Only with
            the fused head.

    Raises:
        ValueError: the bounds do not enclose 0, ``sync_every`` is not an integer ≥ 1, or ``head`` and ``layout`` are
            unknown or do not fit.

    Source: arXiv 2509.24207, section 4.

    >>> Humanline(sync_every=4)
    Humanline(log_epsilon_P=-1.5, log_epsilon_R=1.5, sync_every=4, head='auto', layout='auto')
    """

    sync_every: int | None = 1
    head: Head = "auto"
    layout: Layout = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        k = self.sync_every
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
            raise ValueError(f"sync_every: expected an integer >= 1 or None, got {k!r}")
        for name, choices in (("head", get_args(Head)), ("layout", get_args(Layout))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.head == "trl" and self.layout == "shared_prompt":
            raise ValueError("layout: expected 'auto' or 'padded' with head='trl', got 'shared_prompt'")

    @property
    def is_off(self) -> bool:
        """True if clamp and sync are both off, so that training is TRL's own."""
        return self.log_epsilon_P == -torch.inf and self.log_epsilon_R == torch.inf and self.sync_every is None


PAPER = Humanline()
