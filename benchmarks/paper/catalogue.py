"""The experiments by name."""

from benchmarks.paper import ablation, budget, cadence, equal, stale

MODULES = (equal, ablation, cadence, budget, stale)

EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in MODULES}
