"""Objectives: the data form, settings, loss and metrics of DPO, KTO, GRPO and user-defined losses."""

from humanline_fused.training.objectives.objective import LossInputs, LossResult, Objective, ScoredTokens
from humanline_fused.training.objectives.table import OBJECTIVES, find_objective

__all__ = ["OBJECTIVES", "LossInputs", "LossResult", "Objective", "ScoredTokens", "find_objective"]
