"""The settings that the losses of all objectives share."""

import json
from dataclasses import dataclass, field
from typing import Any

from humanline_fused.types import HumanlineClamp, Impl


@dataclass
class LossSettings:
    """Settings common to all objectives; :class:`humanline_fused.training.HumanlineConfig` inherits them."""

    clamp: bool = field(
        default=True, metadata={"help": "Clamp every token's log-ratio to [log_epsilon_P, log_epsilon_R]."}
    )
    log_epsilon_P: float = field(default=-1.5, metadata={"help": "Lower bound of the log-ratio, nats, <= 0."})
    log_epsilon_R: float = field(default=1.5, metadata={"help": "Upper bound of the log-ratio, nats, >= 0."})
    beta: float | None = field(
        default=None,
        metadata={"help": "Weight of the implicit reward, or of the KL penalty. The default depends on the objective."},
    )
    impl: Impl = field(default="auto", metadata={"help": "Implementation of the loss: auto, triton or eager."})

    @property
    def humanline_clamp(self) -> HumanlineClamp | None:
        """The bounds as an argument of the losses; None if ``clamp`` is off."""
        return HumanlineClamp(self.log_epsilon_P, self.log_epsilon_R) if self.clamp else None


def expect(settings: object, name: str, holds: bool, expected: str) -> None:
    """Raise ValueError with the setting's name, the expected and the actual value, unless ``holds``."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {getattr(settings, name)!r}")


def json_mapping(name: str, text: str) -> dict[str, Any]:
    """Return a setting that is a JSON object.

    Raises:
        ValueError: the text is not JSON, or not an object.
    """
    try:
        mapping = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: expected a mapping in JSON, got {text!r}: {error}") from None
    if not isinstance(mapping, dict):
        raise ValueError(f"{name}: expected a mapping in JSON, got {text!r}")
    return mapping
