"""The experiments by name."""

from benchmarks.paper import (
    ablation,
    beyond,
    bounds,
    budget,
    cadence,
    drift,
    equal,
    fresh,
    frozen,
    llama,
    perception,
    personal,
    predict,
    quality,
    quartile,
    size,
    speed,
    stale,
    weights,
)

MODULES = (
    equal,
    fresh,
    ablation,
    cadence,
    budget,
    frozen,
    stale,
    bounds,
    quartile,
    quality,
    beyond,
    predict,
    drift,
    size,
    weights,
    perception,
    personal,
    llama,
    speed,
)

EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in MODULES}
