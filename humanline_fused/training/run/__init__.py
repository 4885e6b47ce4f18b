"""The life of a run: checkpoints, termination, sharding, metrics, and what it reports about itself."""
