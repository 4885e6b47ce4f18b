"""What a case is, and what every loss takes, whether on logits (``logits.py``) or on hidden states (``head.py``)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

LOG_EPSILON = 1.5
MASKED_SHARE = 0.3

Settings = dict[str, float]
Mode = Literal["nograd", "frozen", "full"]
"""The value alone under ``torch.no_grad()``; forward and backward with a head that is not trained; or with all."""

MODES: tuple[Mode, ...] = ("nograd", "frozen", "full")


@dataclass(frozen=True)
class Targets:
    """What a loss takes beside its scores, for every objective.

    Attributes:
        target_ids: [B, T], int64.
        loss_mask: [B, T], bool.
        desirable: [B], bool.
        advantages: [B], at least float32.
    """

    target_ids: Tensor
    loss_mask: Tensor
    desirable: Tensor
    advantages: Tensor

    @property
    def counted(self) -> int:
        """How many rows count."""
        return int(self.loss_mask.sum())


def random_targets(B: int, T: int, V: int, generator: torch.Generator, masked: float) -> dict[str, Tensor]:
    """The fields of :class:`Targets`. A ``masked`` share of the rows does not count, and no last row does: a causal
    model's last row has no target."""
    device = generator.device
    loss_mask = torch.rand(B, T, generator=generator, device=device) >= masked
    loss_mask[:, -1] = False
    return {
        "loss_mask": loss_mask,
        "target_ids": torch.randint(0, V, (B, T), generator=generator, device=device),
        "desirable": torch.arange(B, device=device) % 2 == 0,
        "advantages": torch.randn(B, generator=generator, device=device),
    }


class Inputs(Protocol):
    """What a comparison asks of either kind of batch.

    Attributes:
        shape: B, T, V, and H where there are hidden states.
        scores: the tensor whose dtype and device are the batch's.
    """

    @property
    def target_ids(self) -> Tensor: ...
    @property
    def loss_mask(self) -> Tensor: ...
    @property
    def desirable(self) -> Tensor: ...
    @property
    def advantages(self) -> Tensor: ...
    @property
    def counted(self) -> int: ...
    @property
    def shape(self) -> dict[str, int]: ...
    @property
    def scores(self) -> Tensor: ...

    def exact(self) -> Self:
        """The batch whose answers are compared: of the same shape and dtype, with logits that no rounding touches."""
        ...


@dataclass(frozen=True)
class Case:
    """One operation.

    Attributes:
        operation: ``"logp"`` (its gradient for dlogp = the advantages), ``"dpo"``, ``"kto"`` or ``"grpo"``.
        log_epsilon: humanline's bounds are ±this.
    """

    name: str
    operation: str
    settings: Settings
    log_epsilon: float = LOG_EPSILON
    softcap: float | None = None

    @property
    def has_reference(self) -> bool:
        return self.operation != "logp"

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Those that are worth a comparison."""
        raise NotImplementedError

    def floor(self, mode: Mode, batch: Any) -> dict[str, int]:
        """What no implementation can do without: ``floor_bytes`` or ``floor_flops`` of a row."""
        raise NotImplementedError

    def inputs(self, batch: Any) -> Any:
        """What this case makes of a batch before anything is compared."""
        return batch

    def writable(self, batch: Any) -> tuple[Any, Callable[[], object]]:
        """The inputs that a call may write over, and what puts them right again before each call."""
        return batch, lambda: None

    def leaves(self, mode: Mode, batch: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """The batch with a graph, and its tensors whose gradients are asked for."""
        raise NotImplementedError


DPO: Settings = {"beta": 0.1}
KTO: Settings = {"beta": 0.1, "kl": 0.2}
GRPO: Settings = {"beta": 0.01, "epsilon": 0.2}
