"""The experiments by name."""

from benchmarks.paper import equal

EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in (equal,)}
