"""Run management: checkpoints, termination, sharding, metrics, warnings and the start-up summary."""
