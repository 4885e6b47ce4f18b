"""One record per objective: its data, batches, rounds, settings, loss, metrics and names for viewers."""

from humanline_fused.training.objectives.objective import LossInputs, LossResult, Objective, ScoredTokens
from humanline_fused.training.objectives.table import OBJECTIVES, find_objective

__all__ = ["OBJECTIVES", "LossInputs", "LossResult", "Objective", "ScoredTokens", "find_objective"]
