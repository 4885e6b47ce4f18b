"""Memory of a training step, computed from a model's config alone."""
