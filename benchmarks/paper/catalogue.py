"""The experiments by name."""

from benchmarks.paper import (
    ablation,
    beyond,
    bounds,
    budget,
    cadence,
    equal,
    perception,
    personal,
    quality,
    quartile,
    stale,
    weights,
)

MODULES = (equal, ablation, cadence, budget, stale, bounds, quartile, quality, beyond, weights, perception, personal)

EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in MODULES}
