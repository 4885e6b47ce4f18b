"""The experiments by name."""

from benchmarks.paper import ablation, budget, cadence, equal

EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in (equal, ablation, cadence, budget)}
