"""The experiments by name."""

from benchmarks.paper import ablation, bounds, budget, cadence, equal, quality, quartile, stale

MODULES = (equal, ablation, cadence, budget, stale, bounds, quartile, quality)

EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in MODULES}
