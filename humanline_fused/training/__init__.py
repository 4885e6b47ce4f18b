"""Transformers' Trainer with humanline losses and a synced reference."""

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.forms import GROUPS, LABELS, PAIRS
from humanline_fused.training.objectives import OBJECTIVES, LossInputs, LossResult, Objective, ScoredTokens
from humanline_fused.training.objectives.metrics import Weighted, label_metrics, pair_metrics
from humanline_fused.training.trainer import HumanlineTrainer

__all__ = [
    "GROUPS",
    "LABELS",
    "OBJECTIVES",
    "PAIRS",
    "HumanlineConfig",
    "HumanlineTrainer",
    "LossInputs",
    "LossResult",
    "Objective",
    "ScoredTokens",
    "Weighted",
    "label_metrics",
    "pair_metrics",
]
