"""The experiments by name."""

from benchmarks.paper import ablation, bounds, budget, cadence, equal, quartile, stale

MODULES = (equal, ablation, cadence, budget, stale, bounds, quartile)

EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in MODULES}
