"""The settings that the losses of all objectives share."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from humanline_fused.types import HumanlineClamp, HumanlineSampling, Impl

PerceptionSetting = Literal["clamp", "sampling"]
SAMPLING = ("gamma_P", "beta_P", "gamma_R", "beta_R")
"""Settings that apply only to humanline sampling."""
CLAMP = ("clamp", "log_epsilon_P", "log_epsilon_R")
"""Settings that apply only to the clamp."""


@dataclass
class LossSettings:
    """Settings common to all objectives; :class:`humanline_fused.training.HumanlineConfig` inherits them."""

    clamp: bool = field(
        default=True, metadata={"help": "Clamp every token's log-ratio to [log_epsilon_P, log_epsilon_R]."}
    )
    log_epsilon_P: float = field(default=-1.5, metadata={"help": "Lower bound of the log-ratio, nats, <= 0."})
    log_epsilon_R: float = field(default=1.5, metadata={"help": "Upper bound of the log-ratio, nats, >= 0."})
    perception: PerceptionSetting = field(
        default="clamp",
        metadata={
            "help": "clamp, or sampling: humanline sampling in its place, which stops the gradient of random tokens. "
            "It takes a further forward pass."
        },
    )
    gamma_P: float = field(
        default=0.5, metadata={"help": "sampling: B_P is drawn from Beta(gamma_P, beta_P); 0 keeps every token."}
    )
    beta_P: float = field(default=1.0, metadata={"help": "sampling: second parameter of B_P's distribution, > 0."})
    gamma_R: float = field(
        default=0.01, metadata={"help": "sampling: B_R is drawn from Beta(gamma_R, beta_R); 0 keeps every token."}
    )
    beta_R: float = field(default=1.0, metadata={"help": "sampling: second parameter of B_R's distribution, > 0."})
    beta: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the implicit reward (DPO, KTO; default 0.1), or of the KL penalty (GRPO; default 0). "
            "An objective of your own has its default_beta."
        },
    )
    loss_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Temperature of the log-probs of policy and reference, in the loss and its metrics. Default: 1; "
            "with rounds the sampling temperature, because the samples come from the policy at that temperature."
        },
    )
    entropy_coef: float = field(
        default=0.0,
        metadata={
            "help": "Weight of an entropy bonus: the policy's entropy at the tokens that count, averaged over those of "
            "the optimizer step, is subtracted from the loss. It costs as much as log_entropy."
        },
    )
    log_entropy: bool = field(
        default=False,
        metadata={
            "help": "Log humanline/entropy, the policy's mean entropy in nats; on with an entropy bonus. With a fused "
            "head that is trained it costs a fourth product with the head's weight beside three."
        },
    )
    impl: Impl = field(default="auto", metadata={"help": "Implementation of the loss: auto, triton or eager."})

    @property
    def temperature_of_loss(self) -> float:
        """The temperature of the log-probs of policy and reference: that of the samples, if none is given."""
        sampled = getattr(self, "temperature", 1.0)  # a run's config refuses another one without rounds
        return sampled if self.loss_temperature is None else self.loss_temperature

    @property
    def takes_entropy(self) -> bool:
        """True if the policy's entropy is computed."""
        return self.log_entropy or self.entropy_coef != 0

    def check_options(self) -> None:
        """Raise ValueError if the temperature or the weight of the entropy is invalid."""
        given = self.loss_temperature
        expect(self, "loss_temperature", given is None or 0 < given < float("inf"), "a finite number > 0")
        expect(self, "entropy_coef", 0 <= self.entropy_coef < float("inf"), "a finite number >= 0")

    @property
    def humanline_clamp(self) -> HumanlineClamp | None:
        """The bounds as an argument of the losses; None if ``clamp`` is off, or sampling takes its place."""
        clamps = self.clamp and self.perception == "clamp"
        return HumanlineClamp(self.log_epsilon_P, self.log_epsilon_R) if clamps else None

    @property
    def is_humanline(self) -> bool:
        """True if the loss perceives tokens: with the clamp or with humanline sampling."""
        return self.clamp or self.perception == "sampling"

    @property
    def humanline_sampling(self) -> HumanlineSampling | None:
        """The settings of humanline sampling, without draws and maxima; None with ``perception="clamp"``."""
        return HumanlineSampling(**{s: getattr(self, s) for s in SAMPLING}) if self.perception == "sampling" else None


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
