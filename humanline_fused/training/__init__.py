"""The trainer: transformers' Trainer with humanline's losses and a reference that follows the policy."""

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.trainer import HumanlineTrainer

__all__ = ["HumanlineConfig", "HumanlineTrainer"]
